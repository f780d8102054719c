/*-------------------------------------------------------------------------
 *
 * publish.c
 *		Messages that clients publish to a channel.
 *
 * Whether an identity may publish is decided by the channel's publish_check and
 * join_check, which a query worker evaluates as that identity.  The verdict is
 * kept as a *right*, by identity, channel and parameters, until
 *	- a transaction touches a table that the checks read,
 *	- a transaction has a barrier that could make another one of them,
 *	- changefeed.recheck_interval is over, if they depend on something that
 *	  leaves no trace in the WAL, or
 *	- nobody has used it for a while.
 * So a client that says something ten times a second costs a query now and
 * then.  A verdict is as of a moment behind the message that asked for it.  What
 * was published since the question is looked at: then the verdict is not kept,
 * and a message that came after the question asks its own.
 *
 * A message is sent at once to the connections that there are: it is in no log,
 * has no position, and nobody waits for it.  Those of one identity to one
 * instance keep their order.
 *
 * Process: feed worker.  Memory: rights and messages that wait are in a context
 * of their own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "publish.h"
#include "gateways.h"
#include "message.h"
#include "subscribe.h"
#include "wire_write.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

/* Rights that nobody has used for so long (ms) are forgotten. */
#define RIGHT_IDLE 300000
#define MAX_RIGHTS 50000

/* Messages that wait for a verdict: of one connection, and bytes of all. */
#define MAX_WAITING		  100
#define MAX_WAITING_BYTES (16 * 1024 * 1024)

/* A question that fails for a passing reason, or is outdated by barriers. */
#define MAX_ATTEMPTS 10

/* So much for a gateway that does not keep up. */
#define LINK_FULL (8 * 1024 * 1024)

typedef struct Waiting
{
	uint64 connection;
	uint64 published; /* LogPublished() when it came */
	bool echo;
	char *id;
	char *event;
	char *payload;
	Size payload_length;
	Size bytes;
} Waiting;

typedef struct Right
{
	dlist_node node; /* of all, the one used last at the tail */
	char *key;
	int key_length;
	uint64 identity; /* serial */
	uint64 channel;	 /* likewise */
	char *name;		 /* concrete, of the channel */
	TimestampTz used;
	bool known;
	bool allowed;
	bool failed;	  /* what the checks read is not known */
	char sqlstate[6]; /* if not */
	char *message;
	char *hint;
	TimestampTz expires; /* 0: never */
	int nrelids;
	Oid *relids; /* that the checks read */
	bool recheck;

	/* until it is known */
	uint64 job;
	uint64 asked; /* LogPublished() then */
	bool answered;
	bool outdated; /* by a barrier since then */
	int attempts;
	List *waiting; /* of Waiting */
} Right;

typedef struct RightEntry
{
	uint64 hash;
	List *rights;
} RightEntry;

/* Tables that rights depend on, with how many. */
typedef struct ReadTable
{
	Oid relid;
	int nrights;
} ReadTable;

static MemoryContext publish_context;
static HTAB *rights;
static HTAB *read_tables;
static dlist_head all_rights = DLIST_STATIC_INIT(all_rights);
static int nrights;
static int nfailed;
static Size waiting_bytes;
static bool answers;

static void
Initialize(void)
{
	HASHCTL ctl;

	publish_context = AllocSetContextCreate(feed_context, "changefeed rights to publish",
											ALLOCSET_DEFAULT_SIZES);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(RightEntry);
	ctl.hcxt = publish_context;
	rights = hash_create("changefeed rights to publish", 64, &ctl,
						 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(ReadTable);
	read_tables = hash_create("changefeed tables of publish checks", 16, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* ---- rights ---- */

static void
SetTables(Right *right, const Oid *relids, int n)
{
	int i;

	for (i = 0; i < right->nrelids; i++)
	{
		ReadTable *table = hash_search(read_tables, &right->relids[i], HASH_FIND, NULL);

		if (--table->nrights == 0)
			hash_search(read_tables, &right->relids[i], HASH_REMOVE, NULL);
	}
	if (right->relids != NULL)
		pfree(right->relids);
	right->relids = NULL;
	right->nrelids = n;
	if (n == 0)
		return;
	right->relids = MemoryContextAlloc(publish_context, sizeof(Oid) * n);
	for (i = 0; i < n; i++)
	{
		bool found;
		ReadTable *table = hash_search(read_tables, &relids[i], HASH_ENTER, &found);

		right->relids[i] = relids[i];
		table->nrights = found ? table->nrights + 1 : 1;
	}
}

static void
SetFailed(Right *right, bool failed)
{
	nfailed += (failed ? 1 : 0) - (right->failed ? 1 : 0);
	right->failed = failed;
}

static void
FreeWaiting(Waiting *waiting)
{
	Connection *connection = ConnectionById(waiting->connection);

	if (connection != NULL)
		connection->npublishing--;
	waiting_bytes -= waiting->bytes;
	pfree(waiting->id);
	pfree(waiting->event);
	pfree(waiting->payload);
	pfree(waiting);
}

static uint64
HashOf(const char *key, int length)
{
	return hash_bytes_extended((const unsigned char *) key, length, 0);
}

static void
FreeRight(Right *right)
{
	uint64 hash = HashOf(right->key, right->key_length);
	RightEntry *entry = hash_search(rights, &hash, HASH_FIND, NULL);
	ListCell *lc;

	entry->rights = list_delete_ptr(entry->rights, right);
	if (entry->rights == NIL)
		hash_search(rights, &hash, HASH_REMOVE, NULL);
	dlist_delete(&right->node);
	nrights--;
	if (right->job != 0)
		QueryCancel(right->job);
	foreach(lc, right->waiting)
		FreeWaiting(lfirst(lc));
	list_free(right->waiting);
	SetTables(right, NULL, 0);
	SetFailed(right, false);
	if (right->message != NULL)
		pfree(right->message);
	if (right->hint != NULL)
		pfree(right->hint);
	pfree(right->key);
	pfree(right->name);
	pfree(right);
}

/* What is not known yet stays: somebody waits for it. */
static void
ForgetOld(void)
{
	while (!dlist_is_empty(&all_rights))
	{
		Right *oldest = dlist_head_element(Right, node, &all_rights);

		if (oldest->job != 0 || oldest->answered ||
			(nrights <= MAX_RIGHTS &&
			 !TimestampDifferenceExceeds(oldest->used, feed_now, RIGHT_IDLE)))
			return;
		FreeRight(oldest);
	}
}

static Right *
FindRight(Identity *identity, Channel *channel, char *const *params, const char *name)
{
	StringInfoData key;
	RightEntry *entry;
	Right *right;
	uint64 hash;
	bool found;
	ListCell *lc;
	MemoryContext old;
	int i;

	if (rights == NULL)
		Initialize();
	initStringInfo(&key);
	appendBinaryStringInfo(&key, (char *) &identity->serial, sizeof(uint64));
	appendBinaryStringInfo(&key, (char *) &channel->serial, sizeof(uint64));
	for (i = 0; i < channel->template->nparams; i++)
		appendBinaryStringInfo(&key, params[i], (int) strlen(params[i]) + 1);
	hash = HashOf(key.data, key.len);
	entry = hash_search(rights, &hash, HASH_ENTER, &found);
	if (!found)
		entry->rights = NIL;
	foreach(lc, entry->rights)
	{
		right = lfirst(lc);
		if (right->key_length == key.len && memcmp(right->key, key.data, key.len) == 0)
		{
			dlist_delete(&right->node);
			dlist_push_tail(&all_rights, &right->node);
			right->used = feed_now;
			if (right->known && right->expires != 0 && right->expires <= feed_now)
				right->known = false;
			return right;
		}
	}

	old = MemoryContextSwitchTo(publish_context);
	right = palloc0(sizeof(Right));
	right->key = palloc(key.len);
	memcpy(right->key, key.data, key.len);
	right->key_length = key.len;
	right->identity = identity->serial;
	right->channel = channel->serial;
	right->name = pstrdup(name);
	right->used = feed_now;
	entry->rights = lappend(entry->rights, right);
	MemoryContextSwitchTo(old);
	dlist_push_tail(&all_rights, &right->node);
	nrights++;
	return right;
}

/* ---- sending ---- */

static void
Deliver(Connection *sender, Channel *channel, char *const *params, const char *event,
		const char *payload, Size payload_length, bool echo)
{
	const char *from = sender->identity->info.subject;
	List *receivers = NIL;
	MessageGroup *groups;
	ListCell *lc;
	int ngroups;
	int i;

	foreach(lc, MessageSubscriptions(channel, params))
	{
		Subscription *s = lfirst(lc);

		if (MessageMayReceive(s) && (echo || s->connection != sender))
			receivers = lappend(receivers, s);
	}
	groups = MessageGroups(receivers, &ngroups);
	for (i = 0; i < ngroups; i++)
	{
		StringInfoData m;

		initStringInfo(&m);
		MessageBegin(&m, groups[i].one, params, event, payload, payload_length);
		appendStringInfoString(&m, ",\"from\":");
		if (from != NULL)
			EncodeString(&m, from, strlen(from));
		else
			appendStringInfoString(&m, "null");
		appendStringInfoChar(&m, '}');
		GatewayCast(groups[i].gateway, groups[i].numbers, groups[i].n, m.data, m.len);
		pfree(m.data);
	}
	pg_atomic_fetch_add_u64(&feed_shared->feed_messages, 1);
}

static void
Refuse(Connection *connection, const char *id, const Right *right)
{
	ProtocolError(connection, id, NULL, right->sqlstate, right->message, right->hint);
	pg_atomic_fetch_add_u64(&feed_shared->feed_denials, 1);
}

/* ---- asking ---- */

static void
SetRefusal(Right *right, const char *sqlstate, const char *message, const char *hint)
{
	right->allowed = false;
	strlcpy(right->sqlstate, sqlstate, sizeof(right->sqlstate));
	if (right->message != NULL)
		pfree(right->message);
	if (right->hint != NULL)
		pfree(right->hint);
	right->message = MemoryContextStrdup(publish_context, message);
	right->hint = hint != NULL ? MemoryContextStrdup(publish_context, hint) : NULL;
}

static void
OnResult(void *arg, uint64 job, QueryKind kind, WireReader *body)
{
	Right *right = arg;

	switch (kind)
	{
		case QUERY_DESCRIBE:
		{
			Oid *relids;
			int n = SubscribeReadChannel(body, &right->allowed, &relids, &right->recheck);

			SetTables(right, relids, n);
			if (!right->allowed)
				SetRefusal(right, "42501", "permission denied to publish to channel",
						   "The channel's publish_check and, if there is one, its join_check have "
						   "to be true for this identity.");
		}
		break;
		case QUERY_ERROR:
		{
			WireBytes sqlstate = WireGetBytes(body);
			WireBytes message = WireGetBytes(body);
			WireBytes hint = WireGetBytes(body);

			SetRefusal(right, pnstrdup(sqlstate.data, sqlstate.length),
					   pnstrdup(message.data, message.length),
					   hint.length > 0 ? pnstrdup(hint.data, hint.length) : NULL);
			SetTables(right, NULL, 0);
			SetFailed(right, true);
			right->job = 0;
			right->answered = true;
			answers = true;
		}
		break;
		case QUERY_DONE:
			right->job = 0;
			right->answered = true;
			answers = true;
			break;
		default:
			break;
	}
}

static void
Ask(Right *right, Identity *identity, Channel *channel, char *const *params)
{
	StringInfoData body;
	char *check;

	check = channel->join_check != NULL
				? psprintf("(%s\n) AND (%s\n)", channel->join_check, channel->publish_check)
				: channel->publish_check;
	SubscribeBeginQuestion(channel, params, check, identity, QUERY_WITH_POSITION | QUERY_PUBLISH,
						   &body);
	WirePutU16(&body, 0); /* sources */
	WirePutString(&body, "");
	right->asked = LogPublished();
	right->outdated = false;
	right->answered = false;
	right->allowed = false;
	SetFailed(right, false);

	/* Not in front of live changes: whoever likes may name channels of his own. */
	right->job = QuerySubmit(QUERY_SUBSCRIBE, body.data, body.len, QUERY_LATER, OnResult, right);
	pfree(body.data);
}

static bool
MayWait(const Connection *connection, Size bytes)
{
	return connection->npublishing < MAX_WAITING && waiting_bytes + bytes <= MAX_WAITING_BYTES;
}

static void
Wait(Right *right, Connection *connection, const char *id, const char *event, const char *payload,
	 Size payload_length, bool echo)
{
	MemoryContext old = MemoryContextSwitchTo(publish_context);
	Waiting *waiting = palloc(sizeof(Waiting));

	waiting->connection = connection->id;
	waiting->published = LogPublished();
	connection->npublishing++;
	waiting->echo = echo;
	waiting->id = pstrdup(id);
	waiting->event = pstrdup(event);
	waiting->payload = palloc(payload_length);
	memcpy(waiting->payload, payload, payload_length);
	waiting->payload_length = payload_length;
	waiting->bytes = payload_length + sizeof(Waiting) + strlen(event) + strlen(id);
	waiting_bytes += waiting->bytes;
	right->waiting = lappend(right->waiting, waiting);
	MemoryContextSwitchTo(old);
}

/* ---- answers ---- */

static bool
TouchesTables(const Right *right, const LogTransaction *transaction)
{
	int i;
	int k;

	for (i = 0; i < transaction->ntouched; i++)
		for (k = 0; k < right->nrelids; k++)
			if (transaction->touched[i] == right->relids[k])
				return true;
	for (i = 0; i < transaction->nbarriers; i++)
		for (k = 0; k < right->nrelids; k++)
			if (transaction->barriers[i].kind == BARRIER_RELATION &&
				transaction->barriers[i].relid == right->relids[k])
				return true;
	return false;
}

/* Has nothing happened since the question that could make another verdict? */
static bool
StillTrue(const Right *right)
{
	uint64 number;

	if (right->outdated)
		return false;
	for (number = right->asked + 1; number <= LogPublished(); number++)
	{
		LogTransaction *transaction = LogGet(number);

		if (transaction == NULL || TouchesTables(right, transaction))
			return false;
	}
	return true;
}

/* Up to the messages that came at this LogPublished(); later ones go on waiting. */
static void
SendWaiting(Right *right, Channel *channel, char *const *params, uint64 until)
{
	List *waiting = right->waiting;
	MemoryContext old;
	ListCell *lc;
	int n = 0;

	foreach(lc, waiting)
	{
		Waiting *w = lfirst(lc);
		Connection *connection = ConnectionById(w->connection);

		if (w->published > until)
			break;
		n++;
		if (connection != NULL && !connection->closing && connection->identity != NULL)
		{
			if (connection->identity->serial != right->identity)
				ProtocolError(connection, w->id, NULL, "28000",
							  "the identity of the connection has changed meanwhile",
							  "Publish it again.");
			else if (!right->allowed)
				Refuse(connection, w->id, right);
			else
			{
				Deliver(connection, channel, params, w->event, w->payload, w->payload_length,
						w->echo);
				ProtocolOk(connection, "ok", w->id);
			}
		}
		FreeWaiting(w);
	}
	old = MemoryContextSwitchTo(publish_context);
	right->waiting = list_copy_tail(waiting, n);
	MemoryContextSwitchTo(old);
	list_free(waiting);
}

/* Somebody who waits with this identity, or NULL. */
static Identity *
IdentityOf(const Right *right)
{
	ListCell *lc;

	foreach(lc, right->waiting)
	{
		Connection *connection = ConnectionById(((Waiting *) lfirst(lc))->connection);

		if (connection != NULL && connection->identity != NULL &&
			connection->identity->serial == right->identity)
			return connection->identity;
	}
	return NULL;
}

static void
UseAnswer(Right *right)
{
	char *params[CHANNEL_PARAMS_MAX] = {0};
	Channel *channel = ChannelsFind(right->name, strlen(right->name), params);
	Identity *identity = IdentityOf(right);
	bool keep = StillTrue(right);

	right->answered = false;
	if (channel == NULL || channel->serial != right->channel)
	{
		/* Defined anew: whoever waits may ask again. */
		SetRefusal(right, "40001", "the channel was changed meanwhile", "Publish it again.");
		SendWaiting(right, channel, params, PG_UINT64_MAX);
		FreeRight(right);
		return;
	}
	if (identity != NULL && right->attempts < MAX_ATTEMPTS &&
		(right->outdated || (!right->allowed && SubscribeMayRetry(right->sqlstate))))
	{
		right->attempts++;
		Ask(right, identity, channel, params);
		return;
	}
	SendWaiting(right, channel, params, keep ? PG_UINT64_MAX : right->asked);
	right->attempts = 0;
	if (right->waiting != NIL && (identity = IdentityOf(right)) != NULL)
	{
		Ask(right, identity, channel, params);
		return;
	}
	SendWaiting(right, channel, params, PG_UINT64_MAX);
	if (!keep || (!right->allowed && SubscribeMayRetry(right->sqlstate)))
	{
		FreeRight(right);
		return;
	}
	right->known = true;
	right->expires = 0;

	if (right->failed)
		right->expires = TimestampTzPlusMilliseconds(feed_now, 1000);
	else if (right->recheck && setting_recheck_interval > 0)
		right->expires = TimestampTzPlusMilliseconds(feed_now,
													 (int64) setting_recheck_interval * 1000);
}

void
PublishAdvance(void)
{
	dlist_mutable_iter iter;

	if (!answers)
		return;
	answers = false;
	dlist_foreach_modify(iter, &all_rights)
	{
		Right *right = dlist_container(Right, node, iter.cur);

		if (right->answered)
			UseAnswer(right);
	}
}

/* ---- what becomes of rights ---- */

void
PublishForgetRights(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &all_rights)
	{
		Right *right = dlist_container(Right, node, iter.cur);

		if (right->known)
			FreeRight(right);
		else
			right->outdated = true;
	}
}

void
PublishApply(LogTransaction *transaction)
{
	dlist_mutable_iter iter;
	bool concerns = false;
	int i;

	if (nrights == 0)
		return;
	for (i = 0; i < transaction->nbarriers; i++)
	{
		switch (transaction->barriers[i].kind)
		{
			case BARRIER_SAME:
				break;
			case BARRIER_RELATION:
				if (hash_search(read_tables, &transaction->barriers[i].relid, HASH_FIND, NULL))
					concerns = true;
				break;
			default:
				/* Revocations end connections, and are no channel's. */
				if (transaction->barriers[i].kind != BARRIER_CATALOG ||
					transaction->barriers[i].relid == InvalidOid)
				{
					PublishForgetRights();
					return;
				}
		}
	}
	for (i = 0; i < transaction->ntouched && !concerns; i++)
		if (hash_search(read_tables, &transaction->touched[i], HASH_FIND, NULL))
			concerns = true;
	if (!concerns && (nfailed == 0 || transaction->ntouched + transaction->nbarriers == 0))
		return;
	dlist_foreach_modify(iter, &all_rights)
	{
		Right *right = dlist_container(Right, node, iter.cur);

		if (right->known && (right->failed || TouchesTables(right, transaction)))
			FreeRight(right);
	}
}

/* ---- the client's message ---- */

static bool
BoolField(JsonMessage *message, const char *name, bool otherwise, bool *value)
{
	const JsonField *field = JsonMessageGet(message, name);

	*value = otherwise;
	if (field == NULL || field->type == JSON_TOKEN_NULL)
		return true;
	if (field->type != JSON_TOKEN_TRUE && field->type != JSON_TOKEN_FALSE)
		return false;
	*value = field->type == JSON_TOKEN_TRUE;
	return true;
}

void
PublishMessage(Connection *connection, JsonMessage *message, const char *id, const char *data,
			   Size length)
{
	const char *name = ProtocolChannel(connection, message, id);
	const char *event = JsonMessageString(message, "event");
	const JsonField *payload = JsonMessageGet(message, "payload");
	const char *text = payload != NULL ? payload->raw : "null";
	Size text_length = payload != NULL ? payload->raw_length : 4;
	char *params[CHANNEL_PARAMS_MAX] = {0};
	const char *problem;
	Channel *channel;
	Right *right;
	bool echo;
	int i;

	if (name == NULL)
		return;
	problem = event == NULL ? "\"event\" has to be a string"
							: MessageEventProblem(event, strlen(event));
	if (problem != NULL)
	{
		ProtocolError(connection, id, NULL, event == NULL ? "08P01" : "22023", problem, NULL);
		return;
	}
	if (!BoolField(message, "echo", true, &echo))
	{
		ProtocolError(connection, id, NULL, "08P01", "\"echo\" has to be true or false", NULL);
		return;
	}
	if (text_length > (Size) setting_max_payload * 1024)
	{
		ProtocolError(connection, id, NULL, "54000",
					  psprintf("payload is longer than %d kB", setting_max_payload),
					  "Send less, or raise changefeed.max_payload.");
		return;
	}
	if (strchr(name, '?') != NULL)
	{
		ProtocolError(connection, id, NULL, "22023",
					  "conditions behind \"?\" have no meaning in \"publish\"",
					  "Name the channel only.");
		return;
	}
	channel = ChannelsFind(name, strlen(name), params);
	if (channel == NULL)
	{
		if (!Postpone(connection, data, length))
			ProtocolError(connection, id, NULL, "42704",
						  psprintf("channel \"%s\" does not exist", name),
						  "The view changefeed.channels lists the channels of this database.");
		return;
	}
	for (i = 0; i < channel->template->nparams; i++)
	{
		if (params[i] != NULL)
			continue;
		ProtocolError(connection, id, NULL, "22023", "a message is published to one channel",
					  "Give each parameter of the channel's name a value instead of \"*\".");
		return;
	}
	if (channel->publish_check == NULL)
	{
		if (Postpone(connection, data, length))
			return;
		ProtocolError(connection, id, NULL, "42501",
					  psprintf("clients may not publish to channel \"%s\"", name),
					  "The channel has no publish_check.");
		pg_atomic_fetch_add_u64(&feed_shared->feed_denials, 1);
		return;
	}
	if (GatewaysPending() > LINK_FULL || feed_memory >= MEMORY_OVER)
	{
		ProtocolError(connection, id, NULL, "53000", "the feed is overloaded",
					  "Publish it again later.");
		return;
	}

	right = FindRight(connection->identity, channel, params, name);
	if (right->known && right->allowed)
	{
		Deliver(connection, channel, params, event, text, text_length, echo);
		ProtocolOk(connection, "ok", id);
	}
	else if (right->known)
	{
		/* Perhaps what would allow it has just been committed. */
		if (!Postpone(connection, data, length))
			Refuse(connection, id, right);
	}
	else if (!MayWait(connection, text_length))
		ProtocolError(connection, id, NULL, "53400", "too many messages wait to be published",
					  "Wait for \"ok\" before publishing more.");
	else
	{
		Wait(right, connection, id, event, text, text_length, echo);
		/* An answer that has come is used at the end of the turn, for this one, too. */
		if (right->job == 0 && !right->answered)
			Ask(right, connection->identity, channel, params);
	}
	ForgetOld();
}
