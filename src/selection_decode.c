/*-------------------------------------------------------------------------
 *
 * selection_decode.c
 *		Percent-decoding of what follows "?" in a channel's name.
 *
 * As in PostgREST's URLs: every byte may come as %XX, and "+" is a space.  A
 * percent sign that begins no escape, and ";", which some take for "&", are
 * refused rather than guessed about.
 *
 * Process: feed worker, query workers, any backend (tests).  Memory:
 * CurrentMemoryContext.  No locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "selection.h"

#include "mb/pg_wchar.h"

static int
HexDigit(unsigned char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

char *
SelectionDecode(const char *from, Size length, const char **sqlstate, char **problem,
				const char **hint)
{
	char *decoded = palloc(length + 1);
	Size n = 0;
	Size i;

	*sqlstate = "42601";
	*problem = NULL;
	for (i = 0; i < length; i++)
	{
		unsigned char c = (unsigned char) from[i];

		if (c == '+')
			c = ' ';
		else if (c == ';')
		{
			*problem = "\";\" has to be escaped behind \"?\"";
			*hint = "Write it as %3B.";
			return NULL;
		}
		else if (c == '%')
		{
			int high = i + 2 < length ? HexDigit((unsigned char) from[i + 1]) : -1;
			int low = i + 2 < length ? HexDigit((unsigned char) from[i + 2]) : -1;

			if (high < 0 || low < 0)
			{
				*problem = "\"%\" behind \"?\" is not followed by two hexadecimal digits";
				*hint = "Write a percent sign as %25; in patterns * does as well.";
				return NULL;
			}
			c = (unsigned char) (high << 4 | low);
			i += 2;
		}
		if (c == '\0')
		{
			*sqlstate = "22021";
			*problem = "a value behind \"?\" contains a null character";
			return NULL;
		}
		decoded[n++] = (char) c;
	}
	decoded[n] = '\0';

	/* What came escaped was not checked by whoever checked the message. */
	if (!pg_verifymbstr(decoded, (int) n, true))
	{
		*sqlstate = "22021";
		*problem = psprintf("what follows \"?\" is not valid text in the encoding \"%s\"",
							GetDatabaseEncodingName());
		*hint = "Escapes are of the bytes of the text in UTF-8.";
		return NULL;
	}
	return decoded;
}
