/*-------------------------------------------------------------------------
 *
 * fuzz.h
 *		Fuzzing the extension's code in a real backend.
 *
 * The library that the server preloads is the extension, built with sanitizers,
 * and these files.  SELECT fuzz(target, arguments) hands the backend over to
 * libFuzzer, which calls a target with one input after the other.  Each has a
 * transaction and a memory context of its own; an error that is raised ends the
 * input and nothing else.
 *
 *-------------------------------------------------------------------------
 */
#ifndef FUZZ_SERVER_H
#define FUZZ_SERVER_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

#include "../fail.h"

typedef struct FuzzTarget
{
	const char *name;
	void (*start)(void); /* once, in a transaction; NULL: nothing to do */
	void (*run)(const char *data, Size size);
	void (*failed)(void); /* it has raised an error; NULL: that is fine */
} FuzzTarget;

extern const FuzzTarget target_json;
extern const FuzzTarget target_selection;
extern const FuzzTarget target_names;
extern const FuzzTarget target_jwt;
extern const FuzzTarget target_jwks;
extern const FuzzTarget target_feed;
extern const FuzzTarget target_wal2json;
extern const FuzzTarget target_message;
extern const FuzzTarget target_call;

/* What the server's own input functions say of a text; they may be NULL. */
extern bool FuzzJsonIsValid(const char *text, Size length);
extern Jsonb *FuzzJsonb(const char *text, Size length);

/* What an object has under that name; NULL: nothing. */
extern Jsonb *FuzzJsonMember(Jsonb *object, const char *name);

/* selection.c: what a query worker does at its start; in a transaction, which is another one then. */
extern void FuzzQueryStart(void);

/* context.c: a memory context in which each chunk is malloc'ed by itself. */
extern MemoryContext
FuzzContextCreate(MemoryContext parent, const char *name, Size min, Size init, Size max);

/* The bytes of an input, taken from the front. */
typedef struct Input
{
	const unsigned char *data;
	Size left;
} Input;

static inline uint8
TakeU8(Input *in)
{
	if (in->left == 0)
		return 0;
	in->left--;
	return *in->data++;
}

static inline uint16
TakeU16(Input *in)
{
	uint16 high = TakeU8(in);

	return (uint16) (high << 8 | TakeU8(in));
}

static inline const char *
TakeBytes(Input *in, Size *length)
{
	const char *data = (const char *) in->data;

	*length = Min(*length, in->left);
	in->data += *length;
	in->left -= *length;
	return data;
}

#endif
