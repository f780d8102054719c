/*-------------------------------------------------------------------------
 *
 * presence_options.c
 *		The argument `presence` of create_channel.
 *
 * Read where the channel is created, and again by the feed worker, which
 * must not raise an error because of what is in the catalog: so none is raised
 * here.
 *
 * Process: any.  Memory: CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "presence.h"

#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/numeric.h"

static char *
KeyText(const JsonbValue *value)
{
	return pnstrdup(value->val.string.val, value->val.string.len);
}

static const char *
ReadDuration(const char *name, const JsonbValue *value, int least, int most, int *result,
			 const char **hint)
{
	const char *unused;

	*hint = "Write it as a string with a unit, such as \"200 ms\", \"10 s\" or \"1 min\".";
	if (value->type != jbvString || !parse_int(KeyText(value), result, GUC_UNIT_MS, &unused))
		return psprintf("\"%s\" of presence has to be a duration", name);
	if (*result < least || *result > most)
		return psprintf("\"%s\" of presence has to be from %d to %d milliseconds", name, least,
						most);
	return NULL;
}

static const char *
ReadNumber(const char *name, const JsonbValue *value, int least, int most, int *result)
{
	char *text;
	char *end;
	long number = 0;

	if (value->type == jbvNumeric)
	{
		text = DatumGetCString(
			DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));
		errno = 0;
		number = strtol(text, &end, 10);
		if (errno == 0 && *end == '\0' && number >= least && number <= most)
		{
			*result = (int) number;
			return NULL;
		}
	}
	return psprintf("%s has to be a whole number from %d to %d", name, least, most);
}

static const char *
ReadLimits(const JsonbValue *value, PresenceOptions *options, const char **hint)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue v;

	*hint = "Write an object such as {\"editor\": 10}.";
	if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
		return "\"limits\" of presence has to be an object";
	it = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		PresenceLimit *limit = &options->limits[options->nlimits];
		const char *problem;

		if (token != WJB_KEY)
			continue;
		if (options->nlimits == PRESENCE_KINDS_MAX)
			return psprintf("\"limits\" of presence has more than %d kinds", PRESENCE_KINDS_MAX);
		if (v.val.string.len == 0 || v.val.string.len > PRESENCE_KIND_MAX)
			return psprintf("a kind in \"limits\" of presence has to have 1 to %d bytes",
							PRESENCE_KIND_MAX);
		memcpy(limit->kind, v.val.string.val, v.val.string.len);
		limit->kind[v.val.string.len] = '\0';
		(void) JsonbIteratorNext(&it, &v, true);
		problem = ReadNumber(psprintf("the limit of \"%s\" in presence", limit->kind), &v, 0,
							 1000000, &limit->limit);
		if (problem != NULL)
			return problem;
		options->nlimits++;
	}
	return NULL;
}

static const char *
ReadMember(const char *name, const JsonbValue *value, PresenceOptions *options, const char **hint)
{
	if (strcmp(name, "grace") == 0)
		return ReadDuration(name, value, 0, 3600 * 1000, &options->grace, hint);
	if (strcmp(name, "interval") == 0)
		return ReadDuration(name, value, 10, 60 * 1000, &options->interval, hint);
	if (strcmp(name, "max_members") == 0)
		return ReadNumber("\"max_members\" of presence", value, 1, 1000000, &options->max_members);
	if (strcmp(name, "max_state") == 0)
		return ReadNumber("\"max_state\" of presence", value, 2, 65536, &options->max_state);
	if (strcmp(name, "limits") == 0)
		return ReadLimits(value, options, hint);
	if (strcmp(name, "count_only") == 0)
	{
		if (value->type != jbvBool)
			return "\"count_only\" of presence has to be true or false";
		options->count_only = value->val.boolean;
		return NULL;
	}
	*hint = "Available members: grace, interval, limits, max_members, max_state, count_only.";
	return psprintf("presence has an unknown member \"%s\"", name);
}

const char *
PresenceOptionsParse(Jsonb *value, PresenceOptions *options, const char **hint)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue v;

	memset(options, 0, sizeof(PresenceOptions));
	options->grace = 10000;
	options->interval = 200;
	options->max_members = 1000;
	options->max_state = 4096;
	*hint = NULL;
	if (!JB_ROOT_IS_OBJECT(value))
	{
		*hint = "Write '{}' for a channel with presence and the defaults.";
		return "presence has to be an object";
	}
	it = JsonbIteratorInit(&value->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		const char *problem;
		char *name;

		if (token != WJB_KEY)
			continue;
		name = KeyText(&v);
		(void) JsonbIteratorNext(&it, &v, true);
		problem = ReadMember(name, &v, options, hint);
		if (problem != NULL)
			return problem;
	}
	*hint = NULL;
	return NULL;
}
