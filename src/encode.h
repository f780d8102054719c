/*-------------------------------------------------------------------------
 *
 * encode.h
 *		Rows as JSON: the bytes that clients get.
 *
 * A column's value is the text of to_jsonb(value) under pinned settings, so
 * that a snapshot and a live change of the same value are the same bytes.
 * Objects are written without white space, columns in attribute order; keys
 * and values as {"name":value,...}.
 *
 * Pinned settings (TimeZone UTC, ISO dates, ...) are process-local defaults
 * that EncodePinSettings sets once in a worker; EncodePinnedBegin/End force
 * them inside a query worker's transaction, where a role's or database's
 * settings must not change what is sent.
 *
 * Process: feed worker and query workers.  Memory: an encoder and its caches
 * live in the context given at creation; what a call needs is allocated in
 * CurrentMemoryContext, which the caller resets.  Needs a transaction (type
 * look-ups).
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_ENCODE_H
#define CHANGEFEED_ENCODE_H

#include "pg_changefeed.h"

#include "access/tupdesc.h"
#include "lib/stringinfo.h"

typedef struct RowEncoder RowEncoder;

/*
 * An encoder for rows of that type.  Types whose JSON form is made by a
 * user-defined cast are refused with an error (ERRCODE_FEATURE_NOT_SUPPORTED),
 * as user-defined code must not run here.
 */
extern RowEncoder *EncoderCreate(TupleDesc tupdesc, MemoryContext context);

/* `"name":value` of one column (1-based), appended.  Null gives null. */
extern void EncodeColumn(RowEncoder *encoder, StringInfo out, int attno, Datum value, bool isnull);

/* Only the value. */
extern void EncodeValue(RowEncoder *encoder, StringInfo out, int attno, Datum value, bool isnull);

/* `{"a":1,...}` of the given columns (1-based attribute numbers). */
extern void EncodeRow(RowEncoder *encoder, StringInfo out, const int16 *attnos, int nattnos,
					  const Datum *values, const bool *isnull);

/* A JSON string with quotes and escapes. */
extern void EncodeString(StringInfo out, const char *text, Size length);

/* Can a column of that type be sent at all?  For checks at creation. */
extern bool EncodeTypeSupported(Oid typid);

/* Session-wide in the feed worker and query workers. */
extern void EncodePinSettings(void);

/*
 * Force the pinned settings within the current transaction (a query worker
 * whose role may have settings of its own); returns the GUC nest level for
 * AtEOXact_GUC, or simply let the transaction's end undo it.
 */
extern int EncodePinnedBegin(void);
extern void EncodePinnedEnd(int nestlevel);

#endif /* CHANGEFEED_ENCODE_H */
