/*-------------------------------------------------------------------------
 *
 * json.c
 *		Messages of clients (src/json_message.c).
 *
 * Input: a message.
 *
 * Properties: what is accepted is JSON for the server, too, and is an object;
 * an object that jsonb takes, and that is not nested too deeply, is accepted;
 * each field is the text that jsonb has for it, strings decoded, and what is
 * echoed is the value that came.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include "json_message.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

static bool
Same(const Jsonb *a, const Jsonb *b)
{
	return compareJsonbContainers(unconstify(JsonbContainer *, &a->root),
								  unconstify(JsonbContainer *, &b->root)) == 0;
}

static int
Depth(const char *data, Size size)
{
	int depth = 0;
	int most = 0;
	bool quoted = false;
	Size i;

	for (i = 0; i < size; i++)
	{
		if (quoted && data[i] == '\\')
			i++;
		else if (data[i] == '"')
			quoted = !quoted;
		else if (!quoted && (data[i] == '{' || data[i] == '['))
			most = Max(most, ++depth);
		else if (!quoted && (data[i] == '}' || data[i] == ']'))
			depth--;
	}
	return most;
}

static void
CheckField(Jsonb *whole, const JsonMessage *message, const JsonField *field)
{
	Jsonb *raw = FuzzJsonb(field->raw, field->raw_length);
	Jsonb *member = FuzzJsonMember(whole, field->name);
	char *echo = JsonMessageScalar(message, field->name);
	const char *string = JsonMessageString(message, field->name);
	List *strings;

	if (JsonMessageGet(message, field->name) != field)
		return; /* a later one of that name counts */
	if (raw == NULL || member == NULL || !Same(raw, member))
		Fail("field \"%s\" is not what it was in the message", field->name);
	if (echo != NULL)
	{
		Jsonb *value = FuzzJsonb(echo, strlen(echo));

		if (value == NULL || !Same(value, member))
			Fail("field \"%s\" is echoed as another value: %s", field->name, echo);
	}
	if ((string != NULL) != (field->type == JSON_TOKEN_STRING))
		Fail("field \"%s\" is and is no string", field->name);
	if (JsonFieldStrings(field, 20, &strings) &&
		(!JB_ROOT_IS_ARRAY(member) || JB_ROOT_IS_SCALAR(member) ||
		 list_length(strings) > (int) JB_ROOT_COUNT(member) || list_length(strings) > 20))
		Fail("field \"%s\" is no list of strings", field->name);
}

static void
Run(const char *data, Size size)
{
	const char *problem = NULL;
	JsonMessage *message = JsonMessageParse(data, size, &problem);
	Jsonb *whole = FuzzJsonb(data, size);
	bool object = whole != NULL && JB_ROOT_IS_OBJECT(whole);
	int i;

	if (message == NULL)
	{
		if (problem == NULL || problem[0] == '\0')
			Fail("it is not said what is wrong");
		if (!pg_verify_mbstr(PG_UTF8, problem, (int) strlen(problem), true))
			Fail("what is wrong is not said in UTF-8");
		if (object && Depth(data, size) <= JSON_MESSAGE_DEPTH)
			Fail("an object is refused: %s", problem);
		return;
	}
	if (!FuzzJsonIsValid(data, size))
		Fail("it is no JSON for the server");
	if (message->too_many ? message->nfields != JSON_MESSAGE_FIELDS
						  : message->nfields > JSON_MESSAGE_FIELDS)
		Fail("there are %d fields", message->nfields);

	/* A number may be beyond what numeric can be. */
	if (whole == NULL)
		return;
	if (!object)
		Fail("it is no object");
	for (i = 0; i < message->nfields && !message->too_many; i++)
		CheckField(whole, message, &message->fields[i]);
}

const FuzzTarget target_json = {"json", NULL, Run, NULL};
