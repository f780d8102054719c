/*-------------------------------------------------------------------------
 *
 * nls.c
 *		No translations: preloaded behind the sanitizers' runtime.
 *
 * With that runtime in front of it, a server that was built with NLS waits for
 * ever in libc's bindtextdomain(), for a lock of libc that nobody holds.  Here
 * every message is its own translation, and nothing is locked.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>

extern char *bindtextdomain(const char *domain, const char *directory);
extern char *bind_textdomain_codeset(const char *domain, const char *codeset);
extern char *textdomain(const char *domain);
extern char *gettext(const char *text);
extern char *dgettext(const char *domain, const char *text);
extern char *dcgettext(const char *domain, const char *text, int category);
extern char *ngettext(const char *one, const char *many, unsigned long n);
extern char *dngettext(const char *domain, const char *one, const char *many, unsigned long n);
extern char *
dcngettext(const char *domain, const char *one, const char *many, unsigned long n, int category);

char *
bindtextdomain(const char *domain, const char *directory)
{
	return (char *) directory;
}

char *
bind_textdomain_codeset(const char *domain, const char *codeset)
{
	return (char *) codeset;
}

char *
textdomain(const char *domain)
{
	return (char *) domain;
}

char *
gettext(const char *text)
{
	return (char *) text;
}

char *
dgettext(const char *domain, const char *text)
{
	return (char *) text;
}

char *
dcgettext(const char *domain, const char *text, int category)
{
	return (char *) text;
}

char *
ngettext(const char *one, const char *many, unsigned long n)
{
	return (char *) (n == 1 ? one : many);
}

char *
dngettext(const char *domain, const char *one, const char *many, unsigned long n)
{
	return (char *) (n == 1 ? one : many);
}

char *
dcngettext(const char *domain, const char *one, const char *many, unsigned long n, int category)
{
	return (char *) (n == 1 ? one : many);
}
