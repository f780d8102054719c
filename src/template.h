/*-------------------------------------------------------------------------
 *
 * template.h
 *		Channel names: fixed ("orders") and templates ("orders:{customer_id}").
 *
 * The rules, for a template as it is given to create_channel:
 *
 *	- It has 1 to CHANNEL_NAME_MAX bytes.  Control characters, space and
 *	  % ? * { } are *forbidden*: none of them is ever part of a literal.
 *	- {column} is a parameter; it is written as the column is stored, without
 *	  quotes, and no column comes twice.
 *	- Behind a parameter is the end or a *separator*: an ASCII punctuation
 *	  character other than - _ ~ and the forbidden ones.
 *
 * And for a concrete name, which is what clients subscribe to:
 *
 *	- Literals are written as in the template, byte for byte.
 *	- In a parameter's value, letters, digits, - _ ~ and everything beyond
 *	  ASCII stand for themselves; so does any other punctuation that is not
 *	  forbidden and occurs in no literal of this template.  Every byte may
 *	  come as %XX, and all others have to.  A value may be empty.
 *	- A parameter that is just * means every value.
 *
 * So encodeURIComponent gives a right value, unless the template has one of
 * . ! ' ( ) in a literal; a name belongs to a template in at most one way; and
 * whether two templates could produce the same name can be decided exactly.
 * Values are compared as text in the database's encoding; an escape that does
 * not decode to valid text there makes the name match nothing.
 *
 * Process: any backend (DDL) and the feed worker.  Memory: results are
 * allocated in CurrentMemoryContext.  No locks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_TEMPLATE_H
#define CHANGEFEED_TEMPLATE_H

#include "pg_changefeed.h"

#include "lib/stringinfo.h"

#define CHANNEL_NAME_MAX   512 /* bytes of a template and of a concrete name */
#define CHANNEL_PARAMS_MAX 8

typedef struct ChannelTemplate
{
	int nparams;
	char *params[CHANNEL_PARAMS_MAX];		/* column names */
	char *literals[CHANNEL_PARAMS_MAX + 1]; /* before, between, behind */
	bool raw[256];							/* bytes that stand for themselves in values */
} ChannelTemplate;

/* Parses what create_channel was given; errors name what is wrong and why. */
extern ChannelTemplate *TemplateParse(const char *name);

/*
 * Does the concrete name belong to the template?  Then `values` (nparams, or
 * NULL to skip) get the decoded parameters, NULL for a "*".  When the answer
 * is no, `values` is left in an undefined state.
 */
extern bool
TemplateMatch(const ChannelTemplate *template, const char *name, Size length, char **values);

/*
 * The concrete name for those values, appended; a NULL value gives "*".  It
 * may come out longer than CHANNEL_NAME_MAX, and then matches nothing.
 */
extern void TemplateFormat(StringInfo out, const ChannelTemplate *template, char *const *values);

/* Could both produce the same name? */
extern bool TemplatesOverlap(const ChannelTemplate *a, const ChannelTemplate *b);

#endif /* CHANGEFEED_TEMPLATE_H */
