/*-------------------------------------------------------------------------
 *
 * json_message.h
 *		A client's message as a flat list of fields.
 *
 * Parsed by the server's own JSON parser.  Only the fields of the outermost
 * object are kept: strings decoded, everything else as its text.
 *
 * Process: feed worker.  Memory: CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_JSON_MESSAGE_H
#define CHANGEFEED_JSON_MESSAGE_H

#include "pg_changefeed.h"

#include "common/jsonapi.h"
#include "nodes/pg_list.h"

#define JSON_MESSAGE_FIELDS 24
#define JSON_MESSAGE_DEPTH	64

typedef struct JsonField
{
	char *name;
	JsonTokenType type; /* of a scalar; OBJECT_START, ARRAY_START */
	char *text;			/* a string's value; otherwise the JSON text */
	const char *raw;	/* the JSON text as it was sent */
	int raw_length;
} JsonField;

typedef struct JsonMessage
{
	bool too_many; /* the others are left out */
	int nfields;
	JsonField fields[JSON_MESSAGE_FIELDS];
} JsonMessage;

/* NULL when it is not a JSON object; `error` then says why. */
extern JsonMessage *JsonMessageParse(const char *data, Size length, const char **error);

extern const JsonField *JsonMessageGet(const JsonMessage *message, const char *name);

/* The value of a string field, NULL when absent or of another type. */
extern const char *JsonMessageString(const JsonMessage *message, const char *name);

/* An array of at most `max` strings, without repeats; false: it is something else. */
extern bool JsonFieldStrings(const JsonField *field, int max, List **strings);

/* The field as JSON text, for echoing; only scalars. */
extern char *JsonMessageScalar(const JsonMessage *message, const char *name);

#endif /* CHANGEFEED_JSON_MESSAGE_H */
