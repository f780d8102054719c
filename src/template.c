/*-------------------------------------------------------------------------
 *
 * template.c
 *		Channel names and templates.  See template.h for the rules.
 *
 * Process: any backend (DDL) and the feed worker.  Memory: results are
 * allocated in CurrentMemoryContext.  No locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "template.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"

/* Characters that are never part of a literal, nor stand for themselves. */
static bool
Forbidden(unsigned char c)
{
	return c <= ' ' || c == 0x7f || strchr("%?*{}", c) != NULL;
}

/* Characters that stand for themselves in every value, so never separate. */
static bool
AlwaysRaw(unsigned char c)
{
	return c >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
		   (c >= 'A' && c <= 'Z') || c == '-' || c == '_' || c == '~';
}

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

/* Fills `raw` from the literals. */
static void
FindRawCharacters(ChannelTemplate *template)
{
	int i;

	for (i = 0; i < 256; i++)
		template->raw[i] = !Forbidden((unsigned char) i);
	for (i = 0; i <= template->nparams; i++)
	{
		const unsigned char *c;

		for (c = (unsigned char *) template->literals[i]; *c != '\0'; c++)
			if (!AlwaysRaw(*c))
				template->raw[*c] = false;
	}
}

/* The parameter whose name starts at `start`; returns what follows its brace. */
static const char *
ParseParameter(ChannelTemplate *template, const char *name, const char *start)
{
	const char *end = start + strcspn(start, "{}");
	char *param;
	int i;

	if (*end != '}')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("channel name \"%s\" has an opening brace without a closing one", name)));
	if (end == start)
		ereport(ERROR, (errcode(ERRCODE_INVALID_NAME),
						errmsg("channel name \"%s\" has a parameter without a name", name),
						errhint("Write the name of a column between the braces.")));
	if (template->nparams == CHANNEL_PARAMS_MAX)
		ereport(ERROR, (errcode(ERRCODE_INVALID_NAME),
						errmsg("channel name \"%s\" has too many parameters", name),
						errdetail("The limit is %d.", CHANNEL_PARAMS_MAX)));

	param = pnstrdup(start, end - start);
	for (i = 0; i < template->nparams; i++)
		if (strcmp(template->params[i], param) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_NAME),
					 errmsg("channel name \"%s\" has the parameter {%s} twice", name, param)));
	template->params[template->nparams++] = param;

	end++;
	if (*end != '\0' && *end != '}' && (*end == '{' || AlwaysRaw((unsigned char) *end)))
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_NAME),
			 errmsg("channel name \"%s\" needs a separator behind the parameter {%s}", name, param),
			 errdetail("Otherwise it could not be told where the parameter's value ends."),
			 errhint("Put a character such as \":\", \"/\" or \".\" between them.")));
	return end;
}

ChannelTemplate *
TemplateParse(const char *name)
{
	ChannelTemplate *template = palloc0(sizeof(ChannelTemplate));
	const char *c = name;

	if (*name == '\0')
		ereport(ERROR, (errcode(ERRCODE_INVALID_NAME), errmsg("channel name must not be empty")));
	if (strlen(name) > CHANNEL_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME), errmsg("channel name is too long"),
				 errdetail("It has %zu bytes, the limit is %d.", strlen(name), CHANNEL_NAME_MAX)));

	for (;;)
	{
		const char *start = c;

		while (*c != '\0' && !Forbidden((unsigned char) *c))
			c++;
		template->literals[template->nparams] = pnstrdup(start, c - start);

		if (*c == '\0')
			break;
		if (*c == '}')
			ereport(ERROR, (errcode(ERRCODE_INVALID_NAME),
							errmsg("channel name \"%s\" has a closing brace without an opening one",
								   name)));
		if (*c != '{')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_NAME),
					 errmsg("channel name \"%s\" contains a character that is not allowed", name),
					 errdetail(
						 "Control characters, spaces, \"%%\", \"?\" and \"*\" are not allowed.")));
		c = ParseParameter(template, name, c + 1);
	}

	FindRawCharacters(template);
	return template;
}

/*
 * Decodes the parameter's value at `from` and returns where it ends, or NULL
 * when it holds a broken escape.  What ends it is left to the caller.
 */
static const char *
MatchValue(const ChannelTemplate *template, const char *from, const char *end, char **value)
{
	char *decoded;
	int n = 0;

	if (from < end && *from == '*')
	{
		*value = NULL;
		return from + 1;
	}

	decoded = palloc(end - from + 1);
	while (from < end)
	{
		unsigned char c = (unsigned char) *from;

		if (c == '%')
		{
			int high;
			int low;

			if (end - from < 3 || (high = HexDigit((unsigned char) from[1])) < 0 ||
				(low = HexDigit((unsigned char) from[2])) < 0 || (high == 0 && low == 0))
			{
				pfree(decoded);
				return NULL;
			}
			decoded[n++] = (char) (high << 4 | low);
			from += 3;
		}
		else if (template->raw[c])
		{
			decoded[n++] = (char) c;
			from++;
		}
		else
			break;
	}
	decoded[n] = '\0';
	*value = decoded;

	/* What came escaped was not checked by whoever checked the name. */
	return pg_verifymbstr(decoded, n, true) ? from : NULL;
}

bool
TemplateMatch(const ChannelTemplate *template, const char *name, Size length, char **values)
{
	const char *end = name + length;
	int i;

	if (length > CHANNEL_NAME_MAX)
		return false;

	for (i = 0;; i++)
	{
		const char *literal = template->literals[i];
		Size literal_length = strlen(literal);
		char *value;

		if ((Size) (end - name) < literal_length || memcmp(name, literal, literal_length) != 0)
			return false;
		name += literal_length;

		if (i == template->nparams)
			return name == end;

		/*
		 * The next literal starts with a character that is never raw, so the
		 * value ends there and nowhere else.
		 */
		name = MatchValue(template, name, end, &value);
		if (name == NULL)
			return false;
		if (values != NULL)
			values[i] = value;
		else if (value != NULL)
			pfree(value);
	}
}

void
TemplateFormat(StringInfo out, const ChannelTemplate *template, char *const *values)
{
	static const char hex[] = "0123456789ABCDEF";
	int i;

	for (i = 0;; i++)
	{
		const unsigned char *c;

		appendStringInfoString(out, template->literals[i]);
		if (i == template->nparams)
			break;
		if (values[i] == NULL)
		{
			appendStringInfoChar(out, '*');
			continue;
		}
		for (c = (const unsigned char *) values[i]; *c != '\0'; c++)
		{
			if (template->raw[*c])
				appendStringInfoChar(out, (char) *c);
			else
			{
				appendStringInfoChar(out, '%');
				appendStringInfoChar(out, hex[*c >> 4]);
				appendStringInfoChar(out, hex[*c & 15]);
			}
		}
	}
}

/*
 * A template as a sequence of tokens: the bytes of its literals, and
 * PARAMETER.  Returns their number.
 */
#define PARAMETER  (-1)
#define TOKENS_MAX (CHANNEL_NAME_MAX + 1)

static int
Tokenize(const ChannelTemplate *template, int16 *tokens)
{
	int n = 0;
	int i;

	for (i = 0;; i++)
	{
		const unsigned char *c;

		for (c = (const unsigned char *) template->literals[i]; *c != '\0'; c++)
			tokens[n++] = *c;
		if (i == template->nparams)
			return n;
		tokens[n++] = PARAMETER;
	}
}

/*
 * Both are regular expressions in which a parameter is "any number of raw
 * bytes and escapes", and what we want to know is whether they have a word in
 * common.  overlap(i, j), for a from its token i on and b from its token j on,
 * follows from (i+1, j), (i, j+1) and (i+1, j+1), so one row of answers is
 * enough to go from the ends to the starts.
 *
 * Escapes and "*" never occur in a literal.  Where one parameter takes them
 * the other one has to take them too, and then both could have been empty: so
 * only raw bytes matter.
 */
bool
TemplatesOverlap(const ChannelTemplate *a, const ChannelTemplate *b)
{
	int16 ta[TOKENS_MAX];
	int16 tb[TOKENS_MAX];
	bool overlap[TOKENS_MAX + 1];
	int na = Tokenize(a, ta);
	int nb = Tokenize(b, tb);
	int start = 0;
	int i;
	int j;

	/* Most pairs differ in their first literal. */
	while (start < na && start < nb && ta[start] != PARAMETER && tb[start] != PARAMETER)
	{
		if (ta[start] != tb[start])
			return false;
		start++;
	}

	for (i = na; i >= start; i--)
	{
		bool diagonal = false; /* overlap(i+1, j+1) */

		for (j = nb; j >= start; j--)
		{
			bool below = (i < na) ? overlap[j] : false;		/* overlap(i+1, j) */
			bool right = (j < nb) ? overlap[j + 1] : false; /* overlap(i, j+1) */
			bool result;

			if (i == na && j == nb)
				result = true;
			else if (i < na && ta[i] == PARAMETER)
			{
				/* It ends here, or it takes what b has next. */
				result = below || (j < nb && right && (tb[j] == PARAMETER || a->raw[tb[j]]));
			}
			else if (j < nb && tb[j] == PARAMETER)
				result = right || (i < na && below && b->raw[ta[i]]);
			else
				result = i < na && j < nb && ta[i] == tb[j] && diagonal;

			diagonal = below;
			overlap[j] = result;
		}
	}
	return overlap[start];
}

/* ---- For SQL ---- */

PG_FUNCTION_INFO_V1(changefeed_template_parameters);
PG_FUNCTION_INFO_V1(changefeed_template_match);
PG_FUNCTION_INFO_V1(changefeed_template_format);

/* A text[]; null strings become null elements. */
static Datum
TextArray(char *const *strings, int n)
{
	Datum values[CHANNEL_PARAMS_MAX];
	bool nulls[CHANNEL_PARAMS_MAX];
	int lower = 1;
	int i;

	if (n == 0)
		return PointerGetDatum(construct_empty_array(TEXTOID));
	for (i = 0; i < n; i++)
	{
		nulls[i] = strings[i] == NULL;
		values[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(strings[i]);
	}
	return PointerGetDatum(
		construct_md_array(values, nulls, 1, &n, &lower, TEXTOID, -1, false, TYPALIGN_INT));
}

/* _parameters(template text) returns text[] */
Datum
changefeed_template_parameters(PG_FUNCTION_ARGS)
{
	ChannelTemplate *template = TemplateParse(text_to_cstring(PG_GETARG_TEXT_PP(0)));

	PG_RETURN_DATUM(TextArray(template->params, template->nparams));
}

/* _match(template text, name text) returns text[]: null when it does not */
Datum
changefeed_template_match(PG_FUNCTION_ARGS)
{
	ChannelTemplate *template = TemplateParse(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	text *name = PG_GETARG_TEXT_PP(1);
	char *values[CHANNEL_PARAMS_MAX];

	if (!TemplateMatch(template, VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name), values))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(TextArray(values, template->nparams));
}

/* _format(template text, params text[]) returns text */
Datum
changefeed_template_format(PG_FUNCTION_ARGS)
{
	ChannelTemplate *template = TemplateParse(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	char *values[CHANNEL_PARAMS_MAX];
	Datum *elements;
	bool *nulls;
	StringInfoData out;
	int n;
	int i;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls,
					  &n);
	if (n != template->nparams)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("wrong number of values for the name of a channel"),
						errdetail("Parameters: %d, values: %d.", template->nparams, n)));
	for (i = 0; i < n; i++)
		values[i] = nulls[i] ? NULL : TextDatumGetCString(elements[i]);
	initStringInfo(&out);
	TemplateFormat(&out, template, values);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(out.data, out.len));
}
