/*-------------------------------------------------------------------------
 *
 * revocations.c
 *		Tokens that are not accepted any more.  See revocations.h.
 *
 * A revocation says "not before": tokens that were issued earlier (claim iat,
 * in whole seconds) are refused, younger ones are good.  It becomes known with
 * the commit that made it, at its place in the log, like a change of channels:
 * what was committed later is not sent to whom it concerns.
 *
 * To find out whether one concerns a token the token's claims are looked up,
 * each with its value, among the revocations; how many there are is no matter.
 * Of a living connection the claims are kept in two parts: those of the
 * identity, once for all its connections, and what differs from token to token.
 *
 * Process: feed worker, and backends.  A transaction is needed.  Memory: the
 * revocations in a context of their own, which is replaced as a whole.  Locks:
 * those of CatalogScan.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "revocations.h"
#include "presence.h"
#include "gateways.h"

#include "common/hashfn.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* Those with the same role or the same claim and value. */
typedef struct Bucket
{
	uint64 hash;
	List *revocations;
} Bucket;

/* One generation of the table's contents. */
typedef struct Revocations
{
	MemoryContext context;
	List *all; /* of Revocation */
	HTAB *buckets;
	HTAB *ids;
} Revocations;

static Revocations *known;

/* ---- Reading the table ---- */

static void
ReadRevocation(CatalogRow *row, void *arg)
{
	Revocations *revocations = arg;
	MemoryContext old = MemoryContextSwitchTo(revocations->context);
	Revocation *revocation = palloc0(sizeof(Revocation));
	bool isnull;
	Datum role = CatalogRowGet(row, "role", &isnull);

	revocation->role = isnull ? InvalidOid : DatumGetObjectId(role);
	revocation->id = DatumGetInt32(CatalogRowGet(row, "id", &isnull));
	revocation->claim = CatalogRowText(row, "claim");
	revocation->value = CatalogRowText(row, "value");
	revocation->session = CatalogRowText(row, "session");
	revocation->at = DatumGetTimestampTz(CatalogRowGet(row, "revoked_at", &isnull));
	revocation->ends = DatumGetTimestampTz(CatalogRowGet(row, "expires_at", &isnull));
	revocation->revoked = (revocation->at - SetEpochTimestamp() + USECS_PER_SEC - 1) /
						  USECS_PER_SEC;
	revocations->all = lappend(revocations->all, revocation);
	MemoryContextSwitchTo(old);
}

static uint64
HashRole(Oid role)
{
	return hash_bytes_extended((unsigned char *) &role, sizeof(role), 1);
}

static uint64
HashClaim(const char *claim, const char *value)
{
	return hash_combine64(hash_bytes_extended((const unsigned char *) claim, strlen(claim), 2),
						  hash_bytes_extended((const unsigned char *) value, strlen(value), 3));
}

static void
MakeBuckets(Revocations *revocations, List *list, HTAB **buckets)
{
	HASHCTL ctl = {0};
	ListCell *lc;

	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(Bucket);
	ctl.hcxt = revocations->context;
	*buckets = hash_create("changefeed revocations", 64, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	foreach(lc, list)
	{
		Revocation *revocation = lfirst(lc);
		Bucket *bucket;
		uint64 hash;
		bool found;

		if (revocation->session != NULL)
			continue;
		hash = revocation->claim != NULL ? HashClaim(revocation->claim, revocation->value)
										 : HashRole(revocation->role);
		bucket = hash_search(*buckets, &hash, HASH_ENTER, &found);
		bucket->revocations = lappend(found ? bucket->revocations : NIL, revocation);
	}
}

static void
Forget(Revocations *revocations)
{
	if (revocations != NULL)
		MemoryContextDelete(revocations->context);
}

bool
RevocationsReload(void (*added)(List *revocations))
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "changefeed revocations",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Revocations *fresh = palloc0(sizeof(Revocations));
	Revocations *before = known;
	List *news = NIL;
	HASHCTL ctl = {0};
	ListCell *lc;

	fresh->context = context;
	if (!CatalogScan("revocation", ReadRevocation, fresh))
	{
		MemoryContextSwitchTo(old);
		Forget(fresh);
		return false;
	}
	ctl.keysize = sizeof(int);
	ctl.entrysize = sizeof(int);
	ctl.hcxt = context;
	fresh->ids = hash_create("changefeed revocation numbers", 64, &ctl,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	foreach(lc, fresh->all)
	{
		Revocation *revocation = lfirst(lc);

		(void) hash_search(fresh->ids, &revocation->id, HASH_ENTER, NULL);
		if (before == NULL || hash_search(before->ids, &revocation->id, HASH_FIND, NULL) == NULL)
			news = lappend(news, revocation);
	}
	MakeBuckets(fresh, fresh->all, &fresh->buckets);
	MemoryContextSwitchTo(old);

	known = fresh;
	Forget(before);
	if (news != NIL && added != NULL)
		added(news);
	return true;
}

/* ---- Does one concern a token? ---- */

static bool
Concerns(const Revocation *revocation, int64 issued)
{
	/* What is not known to be younger is refused. */
	return issued < revocation->revoked && revocation->ends > GetCurrentTimestamp();
}

static bool
RoleIsRevoked(HTAB *buckets, Oid role, int64 issued)
{
	uint64 hash = HashRole(role);
	Bucket *bucket = hash_search(buckets, &hash, HASH_FIND, NULL);
	ListCell *lc;

	if (bucket == NULL)
		return false;
	foreach(lc, bucket->revocations)
	{
		Revocation *revocation = lfirst(lc);

		if (revocation->claim == NULL && revocation->role == role && Concerns(revocation, issued))
			return true;
	}
	return false;
}

static bool
ClaimIsRevoked(HTAB *buckets, const char *claim, const char *value, int64 issued)
{
	uint64 hash = HashClaim(claim, value);
	Bucket *bucket = hash_search(buckets, &hash, HASH_FIND, NULL);
	ListCell *lc;

	if (bucket == NULL)
		return false;
	foreach(lc, bucket->revocations)
	{
		Revocation *revocation = lfirst(lc);

		if (revocation->claim != NULL && strcmp(revocation->claim, claim) == 0 &&
			strcmp(revocation->value, value) == 0 && Concerns(revocation, issued))
			return true;
	}
	return false;
}

/* As the operator ->> gives it. */
static char *
ValueText(const JsonbValue *value)
{
	Jsonb *jsonb;

	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNull:
			return NULL;
		default:
			jsonb = JsonbValueToJsonb(unconstify(JsonbValue *, value));
			return JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
	}
}

/* Is one of the claims revoked?  `json` is an object, or NULL. */
static bool
ClaimsAreRevoked(HTAB *buckets, const char *json, int64 issued)
{
	Jsonb *claims;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue value;
	char *claim = NULL;

	if (json == NULL || hash_get_num_entries(buckets) == 0)
		return false;
	claims = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json)));
	iterator = JsonbIteratorInit(&claims->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			claim = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE)
		{
			char *text = ValueText(&value);

			if (text != NULL && ClaimIsRevoked(buckets, claim, text, issued))
				return true;
		}
	}
	return false;
}

bool
RevocationsAllow(const IdentityInfo *info, JwtResult *error)
{
	if (known == NULL || !(RoleIsRevoked(known->buckets, info->role, info->issued) ||
						   ClaimsAreRevoked(known->buckets, info->claims, info->issued) ||
						   ClaimsAreRevoked(known->buckets, info->token_claims, info->issued)))
		return true;
	memset(error, 0, sizeof(*error));
	error->sqlstate = "28000";
	error->message = "token was revoked";
	error->hint = "Get a fresh token.";
	return false;
}

/* ---- Living connections ---- */

void
RevocationsNoteToken(Connection *connection, const IdentityInfo *info)
{
	if (connection->token_claims != NULL)
		pfree(connection->token_claims);
	connection->issued = info->issued;
	connection->token_claims = info->token_claims != NULL
								   ? MemoryContextStrdup(feed_context, info->token_claims)
								   : NULL;
}

/*
 * What sessions of this process begin with.  Numbers of connections begin anew
 * with each process, and a name that comes again would be revoked for another.
 */
static uint32
SessionPrefix(void)
{
	static uint32 prefix;

	while (prefix == 0)
		if (!pg_strong_random(&prefix, sizeof(prefix)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random numbers")));
	return prefix;
}

char *
RevocationsSession(const Connection *connection)
{
	return psprintf("%08x" UINT64_FORMAT, SessionPrefix(), connection->id);
}

static void
EndConnection(Connection *connection, const char *message, const char *hint)
{
	if (connection->closing)
		return;
	ProtocolRevokeAll(connection, "revoked");
	ProtocolError(connection, NULL, NULL, "28000", message, hint);
	GatewayClose(connection, LINK_CLOSE_UNAUTHORIZED, "revoked");
}

static void
EndSession(const Revocation *revocation)
{
	char prefix[9];
	Connection *connection;

	snprintf(prefix, sizeof(prefix), "%08x", SessionPrefix());
	if (strncmp(revocation->session, prefix, 8) != 0)
		return;
	connection = ConnectionById(strtoull(revocation->session + 8, NULL, 10));
	if (connection != NULL)
		EndConnection(connection, "session was revoked", NULL);
}

void
RevocationsApply(List *revocations)
{
	HTAB *buckets;
	Revocations scratch = {0};
	dlist_mutable_iter iter;
	dlist_mutable_iter iter2;
	ListCell *lc;

	foreach(lc, revocations)
		if (((Revocation *) lfirst(lc))->session != NULL)
			EndSession(lfirst(lc));

	PresenceCheckAway(revocations);
	scratch.context = CurrentMemoryContext;
	MakeBuckets(&scratch, revocations, &buckets);
	if (hash_get_num_entries(buckets) == 0)
		return;
	dlist_foreach_modify(iter, &all_identities)
	{
		Identity *identity = dlist_container(Identity, node, iter.cur);

		/* Is there a token so old that it would be concerned? */
		bool concerned = RoleIsRevoked(buckets, identity->info.role, PG_INT64_MIN) ||
						 ClaimsAreRevoked(buckets, identity->info.claims, PG_INT64_MIN);

		dlist_foreach_modify(iter2, &identity->connections)
		{
			Connection *connection = dlist_container(Connection, identity_node, iter2.cur);
			int64 issued = connection->issued;

			if ((concerned && (RoleIsRevoked(buckets, identity->info.role, issued) ||
							   ClaimsAreRevoked(buckets, identity->info.claims, issued))) ||
				ClaimsAreRevoked(buckets, connection->token_claims, issued))
				EndConnection(connection, "token was revoked", "Connect again with a fresh token.");
		}
	}
	hash_destroy(buckets);
}
