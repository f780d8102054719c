/*-------------------------------------------------------------------------
 *
 * json_message.c
 *		Reading a client's message with the server's JSON parser.
 *
 * The nesting depth is limited before the parser's own stack check would
 * raise an error, so hostile input is answered, not thrown.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "encode.h"
#include "json_message.h"

#include "mb/pg_wchar.h"

typedef struct MessageParse
{
	JsonLexContext *lex;
	JsonMessage *message;
	int depth;
	char *name;			/* of the field at depth 1 that is being read */
	const char *start;	/* of its value */
	bool not_an_object; /* what is at depth 1 has no name then */
} MessageParse;

static void
AddField(MessageParse *state, JsonTokenType type, char *text)
{
	JsonMessage *message = state->message;

	if (message->nfields < JSON_MESSAGE_FIELDS)
	{
		message->fields[message->nfields].name = state->name;
		message->fields[message->nfields].type = type;
		message->fields[message->nfields].text = text;
		message->fields[message->nfields].raw = state->start;
		message->fields[message->nfields].raw_length = state->lex->prev_token_terminator -
													   state->start;
		message->nfields++;
	}
	else
		message->too_many = true;
}

static compat_json_result
OnObjectStart(void *arg)
{
	MessageParse *state = arg;

	state->depth++;
	return compat_json_success;
}

static compat_json_result
OnObjectEnd(void *arg)
{
	MessageParse *state = arg;

	if (--state->depth == 1 && !state->not_an_object)
		AddField(state, JSON_TOKEN_OBJECT_START,
				 pnstrdup(state->start, state->lex->prev_token_terminator - state->start));
	return compat_json_success;
}

static compat_json_result
OnArrayStart(void *arg)
{
	MessageParse *state = arg;

	if (state->depth == 0)
		state->not_an_object = true;
	state->depth++;
	return compat_json_success;
}

static compat_json_result
OnArrayEnd(void *arg)
{
	MessageParse *state = arg;

	if (--state->depth == 1 && !state->not_an_object)
		AddField(state, JSON_TOKEN_ARRAY_START,
				 pnstrdup(state->start, state->lex->prev_token_terminator - state->start));
	return compat_json_success;
}

static compat_json_result
OnField(void *arg, char *name, bool isnull)
{
	MessageParse *state = arg;

	if (state->depth == 1)
	{
		/* The lexer looks at the value already. */
		state->name = name;
		state->start = state->lex->token_start;
	}
	return compat_json_success;
}

static compat_json_result
OnScalar(void *arg, char *token, JsonTokenType type)
{
	MessageParse *state = arg;

	if (state->depth == 0)
		state->not_an_object = true;
	else if (state->depth == 1 && !state->not_an_object)
		AddField(state, type, token);
	return compat_json_success;
}

static bool
TooDeep(const char *data, Size length)
{
	int depth = 0;
	bool quoted = false;
	Size i;

	for (i = 0; i < length; i++)
	{
		if (quoted)
		{
			if (data[i] == '\\')
				i++;
			else if (data[i] == '"')
				quoted = false;
		}
		else if (data[i] == '"')
			quoted = true;
		else if ((data[i] == '{' || data[i] == '[') && ++depth > JSON_MESSAGE_DEPTH)
			return true;
		else if (data[i] == '}' || data[i] == ']')
			depth--;
	}
	return false;
}

JsonMessage *
JsonMessageParse(const char *data, Size length, const char **error)
{
	MessageParse state = {0};
	JsonSemAction actions = {0};
	JsonParseErrorType result;
	char *copy;

	if (memchr(data, '\0', length) != NULL || !pg_verify_mbstr(PG_UTF8, data, (int) length, true))
	{
		*error = "message is not valid UTF-8";
		return NULL;
	}
	if (TooDeep(data, length))
	{
		*error = "message is nested too deeply";
		return NULL;
	}

	copy = pnstrdup(data, length);
	state.message = palloc0(sizeof(JsonMessage));
	state.lex = compat_json_lexer(copy, (int) length);
	actions.semstate = &state;
	actions.object_start = OnObjectStart;
	actions.object_end = OnObjectEnd;
	actions.array_start = OnArrayStart;
	actions.array_end = OnArrayEnd;
	actions.object_field_start = OnField;
	actions.scalar = OnScalar;
	result = pg_parse_json(state.lex, &actions);
	if (result != JSON_SUCCESS)
	{
		*error = compat_json_error(result, state.lex);
		return NULL;
	}
	if (state.not_an_object)
	{
		*error = "message is not a JSON object";
		return NULL;
	}
	return state.message;
}

const JsonField *
JsonMessageGet(const JsonMessage *message, const char *name)
{
	int i;

	/* Of a repeated name the last counts, as everywhere in JSON. */
	for (i = message->nfields - 1; i >= 0; i--)
		if (strcmp(message->fields[i].name, name) == 0)
			return &message->fields[i];
	return NULL;
}

const char *
JsonMessageString(const JsonMessage *message, const char *name)
{
	const JsonField *field = JsonMessageGet(message, name);

	return field != NULL && field->type == JSON_TOKEN_STRING ? field->text : NULL;
}

char *
JsonMessageScalar(const JsonMessage *message, const char *name)
{
	const JsonField *field = JsonMessageGet(message, name);
	StringInfoData json;

	if (field == NULL)
		return NULL;
	switch (field->type)
	{
		case JSON_TOKEN_STRING:
			initStringInfo(&json);
			EncodeString(&json, field->text, strlen(field->text));
			return json.data;
		case JSON_TOKEN_NUMBER:
			return field->text;
		default:
			return NULL;
	}
}

/* ---- arrays ---- */

typedef struct StringsParse
{
	List *strings;
	int n;
	bool failed;
} StringsParse;

static compat_json_result
OnNested(void *arg)
{
	StringsParse *state = arg;

	state->failed = true;
	return compat_json_success;
}

static compat_json_result
OnInnerArray(void *arg)
{
	StringsParse *state = arg;

	/* The first is the array itself. */
	if (state->n++ > 0)
		state->failed = true;
	return compat_json_success;
}

static compat_json_result
OnElement(void *arg, char *token, JsonTokenType type)
{
	StringsParse *state = arg;
	ListCell *lc;

	if (type != JSON_TOKEN_STRING)
	{
		state->failed = true;
		return compat_json_success;
	}
	foreach(lc, state->strings)
		if (strcmp(lfirst(lc), token) == 0)
			return compat_json_success;
	state->strings = lappend(state->strings, token);
	return compat_json_success;
}

bool
JsonFieldStrings(const JsonField *field, int max, List **strings)
{
	StringsParse state = {0};
	JsonSemAction actions = {0};
	JsonLexContext *lex;

	*strings = NIL;
	if (field->type != JSON_TOKEN_ARRAY_START)
		return false;
	lex = compat_json_lexer(pnstrdup(field->raw, field->raw_length), field->raw_length);
	actions.semstate = &state;
	actions.object_start = OnNested;
	actions.array_start = OnInnerArray;
	actions.scalar = OnElement;
	if (pg_parse_json(lex, &actions) != JSON_SUCCESS || state.failed ||
		list_length(state.strings) > max)
		return false;
	*strings = state.strings;
	return true;
}
