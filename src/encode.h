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
#include "link_format.h"

#include "access/tupdesc.h"
#include "fmgr.h"
#include "lib/stringinfo.h"

typedef struct RowEncoder RowEncoder;

/*
 * An encoder for rows of that type.  It runs no user-defined code: casts to
 * json are passed over, so columns that to_jsonb uses them for are not its own
 * to encode (EncodeTypeUsesCast).
 */
extern RowEncoder *EncoderCreate(TupleDesc tupdesc, MemoryContext context);

/*
 * Lets user-defined casts make the column's JSON.  In query workers only, as
 * the subscriber's role: they run when a value is encoded, and may raise errors.
 */
extern void EncoderUseCasts(RowEncoder *encoder, int attno);

/* `"name":` of one column. */
extern void EncodeLabel(RowEncoder *encoder, StringInfo out, int attno);

/* `"name":value` of one column (1-based), appended.  Null gives null. */
extern void EncodeColumn(RowEncoder *encoder, StringInfo out, int attno, Datum value, bool isnull);

/* Only the value. */
extern void EncodeValue(RowEncoder *encoder, StringInfo out, int attno, Datum value, bool isnull);

/* `{"a":1,...}` of the given columns (1-based attribute numbers). */
extern void EncodeRow(RowEncoder *encoder, StringInfo out, const int16 *attnos, int nattnos,
					  const Datum *values, const bool *isnull);

/*
 * A row is sent only if it is not longer than that as JSON: a page of a snapshot
 * has to hold it.  As to_jsonb writes numbers without exponents, a short value may
 * be long as text; so both are looked at, the bytes of the values before they are
 * encoded, and the text.
 */
#define ENCODE_MAX_ROW ((int) (LINK_MAX_PAGE - 1024 * 1024))
extern bool EncodeRowIsTooLarge(TupleDesc tupdesc, const int16 *attnos, int nattnos,
								const Datum *values, const bool *isnull);

/* A JSON string with quotes and escapes. */
extern void EncodeString(StringInfo out, const char *text, Size length);

/* ---- encode_nested.c ---- */

/* Does to_jsonb call a user-defined cast for values of the type, at any depth? */
extern bool EncodeTypeUsesCast(Oid typid);

/* The value of a user-defined type, as to_jsonb would write it without casts. */
extern void EncodeNested(StringInfo out, Oid typid, Datum value, bool isnull);

/* Sets up to_jsonb for values of the type. */
extern void EncodeToJsonb(FmgrInfo *function, Oid typid, MemoryContext context);

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
