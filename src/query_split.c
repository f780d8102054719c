/*-------------------------------------------------------------------------
 *
 * query_split.c
 *		Takes a job of verdicts apart, identity by identity.
 *
 * Process: feed worker, when a query worker has died over such a job.  Memory:
 * a context of its own for each call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "utils/memutils.h"

typedef struct VerdictIdentity
{
	Oid role;
	WireBytes claims;
	uint64 fingerprint;
	uint32 nrows;
	const char *rows; /* u32 each, unaligned */
} VerdictIdentity;

/* The parts of a QUERY_VERDICTS body, into which everything points. */
typedef struct VerdictParts
{
	Oid relid;
	WireBytes description;
	uint32 nrows;
	WireBytes *rows;
	bool *identity_only;
	uint32 nidentities;
	VerdictIdentity *identities;
} VerdictParts;

/* Allocates in CurrentMemoryContext.  False: malformed. */
static bool
ReadParts(const char *body, Size length, VerdictParts *parts)
{
	WireReader reader = WireReaderInit(body, length);
	uint32 i;

	memset(parts, 0, sizeof(VerdictParts));
	parts->relid = WireGetU32(&reader);
	parts->description = WireGetBytes(&reader);
	parts->nrows = WireGetU32(&reader);
	if (reader.failed || parts->nrows > reader.length)
		return false;
	parts->rows = palloc(sizeof(WireBytes) * Max(parts->nrows, 1));
	parts->identity_only = palloc0(sizeof(bool) * Max(parts->nrows, 1));
	for (i = 0; i < parts->nrows; i++)
		parts->rows[i] = WireGetBytes(&reader);

	parts->nidentities = WireGetU32(&reader);
	if (reader.failed || parts->nidentities > reader.length)
		return false;
	parts->identities = palloc(sizeof(VerdictIdentity) * Max(parts->nidentities, 1));
	for (i = 0; i < parts->nidentities; i++)
	{
		VerdictIdentity *identity = &parts->identities[i];

		identity->role = WireGetU32(&reader);
		identity->claims = WireGetBytes(&reader);
		identity->fingerprint = WireGetU64(&reader);
		identity->nrows = WireGetU32(&reader);
		identity->rows = WireTake(&reader, (size_t) identity->nrows * sizeof(uint32));
	}

	/* Optional. */
	if (!reader.failed && reader.offset < reader.length)
	{
		uint32 n = WireGetU32(&reader);

		while (n-- > 0 && !reader.failed)
		{
			uint32 row = WireGetU32(&reader);

			if (row >= parts->nrows)
				return false;
			parts->identity_only[row] = true;
		}
	}
	return WireAtEnd(&reader);
}

static bool
WritePart(const VerdictParts *parts, uint32 part, StringInfo out)
{
	const VerdictIdentity *identity = &parts->identities[part];
	StringInfoData only;
	uint32 nonly = 0;
	uint32 i;

	initStringInfo(&only);
	WirePutU32(out, parts->relid);
	WirePutBytes(out, parts->description.data, parts->description.length);
	WirePutU32(out, identity->nrows);
	for (i = 0; i < identity->nrows; i++)
	{
		uint32 row;

		memcpy(&row, identity->rows + i * sizeof(uint32), sizeof(uint32));
		if (row >= parts->nrows)
			return false;
		WirePutBytes(out, parts->rows[row].data, parts->rows[row].length);
		if (parts->identity_only[row])
		{
			WirePutU32(&only, i);
			nonly++;
		}
	}

	WirePutU32(out, 1);
	WirePutU32(out, identity->role);
	WirePutBytes(out, identity->claims.data, identity->claims.length);
	WirePutU64(out, identity->fingerprint);
	WirePutU32(out, identity->nrows);
	for (i = 0; i < identity->nrows; i++)
		WirePutU32(out, i);

	WirePutU32(out, nonly);
	appendBinaryStringInfo(out, only.data, only.len);
	return true;
}

bool
QuerySplitVerdicts(const char *body, Size length, uint32 part, StringInfo out, uint32 *nparts)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "changefeed verdicts",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	VerdictParts parts;
	bool good = ReadParts(body, length, &parts);

	*nparts = good ? parts.nidentities : 0;
	if (good && out != NULL)
		good = part < parts.nidentities && WritePart(&parts, part, out);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return good;
}
