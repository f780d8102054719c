/*-------------------------------------------------------------------------
 *
 * protocol.c
 *		The client protocol: what clients say, and what is answered at once.
 *
 * A bad message costs that message an `error`, nothing else.  Every message
 * is handled in an error trap of its own, so even an error raised by the
 * server's code below becomes an answer.
 *
 * Process: feed worker.  Memory: the turn's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "gateways.h"
#include "http.h"
#include "json_message.h"
#include "presence.h"
#include "publish.h"
#include "selection.h"
#include "subscribe.h"
#include "revocations.h"
#include "users.h"

#include "access/transam.h"
#include "access/xact.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* Refused tokens are logged so often at most. */
#define REFUSALS_LOGGED_MS 60000


void
ProtocolSend(Connection *connection, const char *data, Size length)
{
	if (connection->http != NULL)
		HttpTakeMessage(connection, data, length);
	else
		GatewaySend(connection, data, length);
}

void
ProtocolError(Connection *connection, const char *request_id, const Spelling *channel,
			  const char *sqlstate, const char *message, const char *hint)
{
	CountError(NULL, sqlstate);
	ProtocolSendError(connection, request_id, channel, sqlstate, message, hint);
}

void
ProtocolSendError(Connection *connection, const char *request_id, const Spelling *channel,
				  const char *sqlstate, const char *message, const char *hint)
{
	StringInfoData m;

	initStringInfo(&m);
	appendStringInfoString(&m, "{\"type\":\"error\"");
	if (request_id != NULL)
		appendStringInfo(&m, ",\"id\":%s", request_id);
	if (channel != NULL)
	{
		appendStringInfoString(&m, ",\"channel\":");
		appendBinaryStringInfo(&m, channel->json, channel->length);
	}
	appendStringInfo(&m, ",\"code\":\"%s\",\"message\":", sqlstate);
	EncodeString(&m, message, strlen(message));
	if (hint != NULL)
	{
		appendStringInfoString(&m, ",\"hint\":");
		EncodeString(&m, hint, strlen(hint));
	}
	appendStringInfoChar(&m, '}');
	ProtocolSend(connection, m.data, m.len);
	pfree(m.data);
}

void
ProtocolOk(Connection *connection, const char *type, const char *id)
{
	char *m = psprintf("{\"type\":\"%s\",\"id\":%s}", type, id);

	ProtocolSend(connection, m, strlen(m));
}

char *
ProtocolIsoTime(int64 seconds)
{
	pg_time_t t = (pg_time_t) seconds;
	struct pg_tm *tm = pg_gmtime(&t);

	return psprintf("%04d-%02d-%02dT%02d:%02d:%02dZ", tm->tm_year + 1900, tm->tm_mon + 1,
					tm->tm_mday, tm->tm_hour, tm->tm_min, tm->tm_sec);
}

/* ---- identities ---- */

void
ProtocolRevokeAll(Connection *connection, const char *reason)
{
	while (!dlist_is_empty(&connection->subscriptions))
	{
		Subscription *s = dlist_head_element(Subscription, connection_node,
											 &connection->subscriptions);
		StringInfoData m;

		SubscribeStopPages(s);
		initStringInfo(&m);
		appendStringInfoString(&m, "{\"type\":\"revoked\",\"channel\":");
		appendBinaryStringInfo(&m, s->name->json, s->name->length);
		appendStringInfo(&m, ",\"reason\":\"%s\",\"code\":\"%s\"}", reason,
						 strcmp(reason, "permission_denied") == 0 ? "42501" : "28000");
		HttpMoves(s, LINK_PART_ENDED, NULL, false);
		ProtocolSend(connection, m.data, m.len);
		pfree(m.data);
		SubscriptionFree(s);
	}
}

/* Another identity on a living connection: everything is seen afresh. */
void
ProtocolChangeIdentity(Connection *connection, Identity *identity)
{
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		SubscribeResync(s, "identity_changed");
		s->load->owes = false;
		s->load->retry_at = 0;
	}
	PresenceIdentityChanges(connection, identity);
	ConnectionSetIdentity(connection, identity);

	/* The verdict that it waits for is another identity's: nobody would wake it. */
	connection->waits_verdict = false;
	GatewayIdentity(connection);
}

typedef enum Authentication
{
	AUTHENTICATED,
	REFUSED,  /* the client was told */
	TOO_MANY, /* so it was; of its user there are enough */
	POSTPONED
} Authentication;

/* Somebody may try again and again: one line for many, and without the token. */
static void
LogRefusal(const Connection *connection, const JwtResult *error)
{
	static TimestampTz logged;
	static uint64 refused;

	refused++;
	if (!TimestampDifferenceExceeds(logged, feed_now, REFUSALS_LOGGED_MS))
		return;
	logged = feed_now;
	ereport(LOG, (errmsg("change feed has refused a token from address \"%s\": %s",
						 connection->peer, error->message),
				  errdetail("Since the start it has refused " UINT64_FORMAT ".", refused)));
}

/* `data` is the whole message, which may have to wait. */
static Authentication
Authenticate(Connection *connection, const char *token, const char *id, const char *data,
			 Size length)
{
	IdentityInfo info;
	JwtResult error = {0};
	Identity *identity;

	if (!IdentityResolve(token, strlen(token), ChannelsRoleAllowed, &info, &error) ||
		!RevocationsAllow(&info, &error))
	{
		/* Perhaps allow_role has just been committed. */
		if (strcmp(error.sqlstate, "42501") == 0 && Postpone(connection, data, length))
			return POSTPONED;
		ProtocolError(connection, id, NULL, error.sqlstate, error.message, error.hint);
		LogRefusal(connection, &error);
		return REFUSED;
	}

	/* Those without a token are not one user; requests that only ask end by themselves. */
	if (token[0] == '\0' || (connection->http != NULL && connection->http->kind == 0))
		UsersDrop(connection);
	else if (!UsersTake(connection, &info))
	{
		ProtocolError(connection, id, NULL, "53300",
					  psprintf("user has %d connections already", setting_max_connections_per_user),
					  "Close another one first, or raise changefeed.max_connections_per_user.");
		return TOO_MANY;
	}
	identity = IdentityIntern(&info);
	if (connection->identity == NULL)
	{
		ConnectionSetIdentity(connection, identity);
		GatewayIdentity(connection);
	}
	else if (connection->identity != identity)
		ProtocolChangeIdentity(connection, identity);
	ProtocolNoteExpiry(connection, info.expires);
	RevocationsNoteToken(connection, &info);
	return AUTHENTICATED;
}

static void
SendConnected(Connection *connection, const char *id)
{
	StringInfoData m;

	initStringInfo(&m);
	appendStringInfoString(&m, "{\"type\":\"connected\"");
	if (id != NULL)
		appendStringInfo(&m, ",\"id\":%s", id);
	appendStringInfo(&m, ",\"session\":\"%s\",\"heartbeat_ms\":%d", RevocationsSession(connection),
					 setting_heartbeat);
	if (connection->expires != 0)
		appendStringInfo(&m, ",\"expires_at\":\"%s\"", ProtocolIsoTime(connection->expires));
	appendStringInfo(&m, ",\"server\":\"pg_changefeed/%s\"}", CHANGEFEED_VERSION);
	ProtocolSend(connection, m.data, m.len);
}

void
ProtocolOpen(Connection *connection, const char *token, Size length)
{
	if (feed_memory >= MEMORY_OVER)
	{
		ProtocolError(connection, NULL, NULL, "53200", "the feed has no memory for new connections",
					  "Try again later, or raise changefeed.worker_memory.");
		GatewayClose(connection, LINK_CLOSE_TRY_LATER, "no memory");
		return;
	}
	if (length == 0)
		return;
	connection->open_token = MemoryContextAllocZero(feed_context, length + 1);
	memcpy(connection->open_token, token, length);
}

/* ---- messages ---- */

static void
Connect(Connection *connection, JsonMessage *message, const char *id, const char *data, Size length)
{
	const char *token = JsonMessageString(message, "token");

	if (connection->identity != NULL)
	{
		ProtocolError(connection, id, NULL, "08P01", "connection is already connected",
					  "Send \"token\" to change the token.");
		return;
	}
	if (JsonMessageGet(message, "token") != NULL && token == NULL &&
		JsonMessageGet(message, "token")->type != JSON_TOKEN_NULL)
	{
		ProtocolError(connection, id, NULL, "08P01", "\"token\" has to be a string", NULL);
		return;
	}
	if (token == NULL)
		token = connection->open_token != NULL ? connection->open_token : "";
	switch (Authenticate(connection, token, id, data, length))
	{
		case AUTHENTICATED:
			break;
		case REFUSED:
			GatewayClose(connection, LINK_CLOSE_UNAUTHORIZED, "unauthorized");
			return;
		case TOO_MANY:
			GatewayClose(connection, LINK_CLOSE_USER_LIMIT, USER_LIMIT_REASON);
			return;
		case POSTPONED:
			return;
	}
	if (connection->open_token != NULL)
	{
		pfree(connection->open_token);
		connection->open_token = NULL;
	}
	SendConnected(connection, id);
}

static void
Token(Connection *connection, JsonMessage *message, const char *id, const char *data, Size length)
{
	const char *token = JsonMessageString(message, "token");

	if (token == NULL)
	{
		ProtocolError(connection, id, NULL, "08P01", "\"token\" has to be a string", NULL);
		return;
	}
	if (Authenticate(connection, token, id, data, length) != AUTHENTICATED)
		return;
	if (connection->expires != 0)
	{
		char *m = psprintf("{\"type\":\"ok\",\"id\":%s,\"expires_at\":\"%s\"}", id,
						   ProtocolIsoTime(connection->expires));

		ProtocolSend(connection, m, strlen(m));
	}
	else
		ProtocolOk(connection, "ok", id);
}

const char *
ProtocolChannel(Connection *connection, const JsonMessage *message, const char *id)
{
	const char *name = JsonMessageString(message, "channel");

	if (name == NULL || name[0] == '\0')
	{
		ProtocolError(connection, id, NULL, "08P01", "\"channel\" has to be a string", NULL);
		return NULL;
	}
	/* What follows "?" has a limit of its own. */
	if (strcspn(name, "?") > CHANNEL_NAME_MAX)
	{
		ProtocolError(connection, id, NULL, "42622",
					  psprintf("channel name is longer than %d bytes", CHANNEL_NAME_MAX), NULL);
		return NULL;
	}
	return name;
}

static void
Subscribe(Connection *connection, JsonMessage *message, const char *id, const char *data,
		  Size length)
{
	const char *name = ProtocolChannel(connection, message, id);
	const char *from = JsonMessageString(message, "from");
	const JsonField *snapshot = JsonMessageGet(message, "snapshot");
	const JsonField *versions = JsonMessageGet(message, "versions");
	char *values[CHANNEL_PARAMS_MAX] = {0};
	Selection *selection = NULL;
	SelectionError error;
	Size length_of_name;
	Channel *channel;
	Subscription *s;
	Position position;

	if (name == NULL)
		return;
	length_of_name = strcspn(name, "?");
	if (name[length_of_name] == '?')
	{
		const char *text = name + length_of_name + 1;

		selection = SelectionParse(text, strlen(text), &error);
		if (selection == NULL)
		{
			ProtocolError(connection, id, NULL, error.sqlstate, error.message, error.hint);
			return;
		}
	}
	if (SubscriptionFind(connection, name, strlen(name)) != NULL)
	{
		ProtocolError(connection, id, NULL, "42710",
					  psprintf("connection is already subscribed to channel \"%s\"", name), NULL);
		return;
	}
	if (connection->nsubscriptions >= setting_max_subscriptions)
	{
		ProtocolError(
			connection, id, NULL, "53400",
			psprintf("connection has %d subscriptions already", connection->nsubscriptions),
			"Unsubscribe from channels that are not shown any more, or raise changefeed.max_subscriptions.");
		return;
	}
	if (feed_memory >= MEMORY_FULL)
	{
		ProtocolError(connection, id, NULL, "53200", "the feed has no memory for new subscriptions",
					  "Try again later, or raise changefeed.worker_memory.");
		return;
	}
	channel = ChannelsFind(name, length_of_name, values);
	if (channel == NULL && Postpone(connection, data, length))
		return;
	if (channel == NULL)
	{
		ProtocolError(connection, id, NULL, "42704",
					  psprintf("channel \"%s\" does not exist", pnstrdup(name, length_of_name)),
					  "The view changefeed.channels lists the channels of this database.");
		return;
	}
	if (channel->nsources == 0 && selection != NULL && name[length_of_name + 1] != '\0')
	{
		ProtocolError(connection, id, NULL, "55000",
					  psprintf("channel \"%s\" has no rows to select from", channel->name),
					  "Leave out what follows \"?\"; the channel has messages only.");
		return;
	}
	if (from == NULL && JsonMessageGet(message, "from") != NULL &&
		JsonMessageGet(message, "from")->type != JSON_TOKEN_NULL)
		from = "";
	if (from != NULL && !PositionParse(from, strlen(from), &position))
	{
		ProtocolError(connection, id, NULL, "22023", "\"from\" is not a position",
					  "Send a position exactly as the server gave it.");
		return;
	}

	s = SubscriptionCreate(connection, InstanceIntern(channel, values),
						   selection != NULL ? selection->sql : "", name, strlen(name));
	if (selection != NULL && name[length_of_name + 1] != '\0')
		s->selection = MemoryContextStrdup(feed_context, name + length_of_name + 1);
	s->window = selection != NULL && selection->limit > 0;
	if (connection->http != NULL)
		s->http_part = atoi(id) - 1;
	s->load->request_id = MemoryContextStrdup(feed_context, id);
	s->versions = versions != NULL && versions->type == JSON_TOKEN_TRUE;
	s->no_snapshot = from == NULL && snapshot != NULL && snapshot->type == JSON_TOKEN_FALSE;
	SubscribeStart(s, from != NULL ? &position : NULL);
}

static void
Unsubscribe(Connection *connection, JsonMessage *message, const char *id)
{
	const char *name = ProtocolChannel(connection, message, id);
	Subscription *s;

	if (name == NULL)
		return;
	s = SubscriptionFind(connection, name, strlen(name));
	if (s == NULL)
	{
		ProtocolError(connection, id, NULL, "42704",
					  psprintf("connection is not subscribed to channel \"%s\"", name), NULL);
		return;
	}
	/* Its request is answered, too. */
	if (!s->announced)
		ProtocolError(connection, s->load->request_id, s->name, "57014",
					  psprintf("subscription to channel \"%s\" was ended by unsubscribe", name),
					  NULL);
	SubscriptionFree(s);
	ProtocolOk(connection, "ok", id);
}

static void
Dispatch(Connection *connection, const char *data, Size length)
{
	const char *problem = NULL;
	JsonMessage *message = JsonMessageParse(data, length, &problem);
	const char *type;
	char *id;

	if (message == NULL)
	{
		ProtocolError(connection, NULL, NULL, "22P02", problem, NULL);
		return;
	}

	/* Of a repeated member the last counts, so none may be left out. */
	if (message->too_many)
	{
		ProtocolError(connection, NULL, NULL, "08P01",
					  psprintf("message has more than %d members", JSON_MESSAGE_FIELDS), NULL);
		return;
	}
	type = JsonMessageString(message, "type");
	id = JsonMessageScalar(message, "id");
	if (type == NULL)
	{
		ProtocolError(connection, id, NULL, "08P01", "\"type\" has to be a string", NULL);
		return;
	}
	if (strcmp(type, "pong") == 0)
		return;
	if (id == NULL)
	{
		ProtocolError(connection, NULL, NULL, "08P01",
					  psprintf("\"%s\" needs an \"id\" that is a number or a string", type), NULL);
		return;
	}
	if (strlen(id) > 256)
	{
		ProtocolError(connection, NULL, NULL, "08P01", "\"id\" is longer than 256 bytes", NULL);
		return;
	}

	if (strcmp(type, "connect") == 0)
	{
		Connect(connection, message, id, data, length);
		return;
	}
	if (connection->identity == NULL)
	{
		/* A token that came with the handshake spares the `connect`. */
		if (connection->open_token == NULL)
		{
			ProtocolError(connection, id, NULL, "08003", "connection is not connected",
						  "Send \"connect\" first.");
			return;
		}
		switch (Authenticate(connection, connection->open_token, id, data, length))
		{
			case AUTHENTICATED:
				break;
			case REFUSED:
				GatewayClose(connection, LINK_CLOSE_UNAUTHORIZED, "unauthorized");
				return;
			case TOO_MANY:
				GatewayClose(connection, LINK_CLOSE_USER_LIMIT, USER_LIMIT_REASON);
				return;
			case POSTPONED:
				return;
		}
		pfree(connection->open_token);
		connection->open_token = NULL;
		SendConnected(connection, NULL);
	}

	if (strcmp(type, "subscribe") == 0)
		Subscribe(connection, message, id, data, length);
	else if (strcmp(type, "unsubscribe") == 0)
		Unsubscribe(connection, message, id);
	else if (strcmp(type, "token") == 0)
		Token(connection, message, id, data, length);
	else if (strcmp(type, "track") == 0 || strcmp(type, "untrack") == 0 ||
			 strcmp(type, "presence") == 0)
		PresenceMessage(connection, message, id, data, length);
	else if (strcmp(type, "sync") == 0)
		ProtocolSync(connection, id);
	else if (strcmp(type, "publish") == 0)
		PublishMessage(connection, message, id, data, length);
	else if (strcmp(type, "call") == 0)
		CallMessage(connection, message, id, data, length);
	else
		ProtocolError(
			connection, id, NULL, "08P01",
			psprintf("message type \"%s\" is not known", pnstrdup(type, Min(strlen(type), 64))),
			NULL);
}

void
ProtocolMessage(Connection *connection, const char *data, Size length)
{
	if (!PostponeBehind(connection, data, length))
		ProtocolHandle(connection, data, length);
}

void
ProtocolHandle(Connection *connection, const char *data, Size length)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData *volatile error = NULL;

	PG_TRY();
	{
		Dispatch(connection, data, length);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
			error->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();

	if (error != NULL)
	{
		/* Whatever the transaction holds goes with it. */
		AbortCurrentTransaction();
		StartTransactionCommand();
		MemoryContextSwitchTo(context);
		ProtocolError(connection, NULL, NULL, unpack_sql_state(error->sqlerrcode), error->message,
					  error->hint);
		ereport(LOG, (errcode(error->sqlerrcode),
					  errmsg("a client's message could not be handled: %s", error->message)));
	}
}
