/*-------------------------------------------------------------------------
 *
 * presence.c
 *		`track`, `untrack` and `presence`: who may say what, and what becomes of
 *		those who go.
 *
 * A member is a user: the claim `sub`, or without one the connection.  What is
 * tracked belongs to the subscription through which it was: it ends with it at
 * once, whether the client ends it or its rights do.  Only a connection that is
 * lost keeps its place, for the channel's grace period.
 *
 * All checks come before the first change: a `track` that is refused changes
 * nothing.  Requests are decided in the order in which they arrive.
 *
 * Process: feed worker.  Memory: the turn's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "encode.h"
#include "http.h"
#include "presence_internal.h"
#include "revocations.h"

#include <math.h>

/* Of one answer to "presence". */
#define LIST_DEFAULT 100
#define LIST_MAX	 1000

#define EXPIRES_MAX 86400 /* seconds */

static const char *
UserOf(Connection *connection, Identity *identity)
{
	if (identity->info.subject != NULL)
		return identity->info.subject;
	return psprintf("session:%s", RevocationsSession(connection));
}

/* Messages of one subscription that wait for it to be announced. */
#define EARLY_MAX 4

typedef struct EarlyMessage
{
	char *id;
	char *data;
	Size length;
} EarlyMessage;

static void
FreeEarly(EarlyMessage *early)
{
	pfree(early->id);
	pfree(early->data);
	pfree(early);
}

static bool
TakeEarly(Subscription *s, const char *id, const char *data, Size length)
{
	MemoryContext old;
	EarlyMessage *early;

	if (list_length(s->early) >= EARLY_MAX || feed_memory >= MEMORY_FULL)
		return false;
	old = MemoryContextSwitchTo(feed_context);
	early = palloc(sizeof(EarlyMessage));
	early->id = pstrdup(id);
	early->data = pnstrdup(data, length);
	early->length = length;
	s->early = lappend(s->early, early);
	MemoryContextSwitchTo(old);
	return true;
}

void
PresenceHandleEarly(Subscription *s)
{
	Connection *connection = s->connection;
	List *early = s->early;
	ListCell *lc;

	s->early = NIL;
	foreach(lc, early)
	{
		EarlyMessage *message = lfirst(lc);

		ProtocolHandle(connection, message->data, message->length);
		FreeEarly(message);
	}
	list_free(early);
}

static void
DropEarly(Subscription *s, bool tell)
{
	ListCell *lc;

	foreach(lc, s->early)
	{
		EarlyMessage *early = lfirst(lc);

		if (tell)
			ProtocolError(s->connection, early->id, s->name, "57014",
						  "the subscription ended, or lost its presence, before it began", NULL);
		FreeEarly(early);
	}
	list_free(s->early);
	s->early = NIL;
}

/* The subscription that a message is about, or NULL: it waits, or the client was told. */
static Viewer *
ViewerOf(Connection *connection, JsonMessage *message, const char *id, const char *data,
		 Size length)
{
	const char *name = ProtocolChannel(connection, message, id);
	Subscription *s;

	if (name == NULL)
		return NULL;
	s = SubscriptionFind(connection, name, strlen(name));
	if (s == NULL)
		ProtocolError(connection, id, NULL, "42704",
					  psprintf("connection is not subscribed to channel \"%s\"", name),
					  "Subscribe to the channel first, under the same name.");
	else if (s->instance->channel->presence == NULL)
		ProtocolError(connection, id, s->name, "55000",
					  psprintf("channel \"%s\" has no presence", name),
					  "It takes the argument presence of changefeed.create_channel.");
	else if (s->instance->starred)
		ProtocolError(connection, id, s->name, "22023", "presence is that of one channel",
					  "Give each parameter of the channel's name a value instead of \"*\".");
	else if (s->presence == NULL)
	{
		if (!TakeEarly(s, id, data, length))
			ProtocolError(connection, id, s->name, "53400",
						  "too many messages wait for the subscription",
						  "Wait for \"subscribed\".");
	}
	else
		return s->presence;
	return NULL;
}

/* ---- track ---- */

typedef struct TrackRequest
{
	const char *state;
	int length;
	const char *kind; /* or NULL */
	double expires_in;
	List *keys;
	const char *user;
} TrackRequest;

static const char *
ReadExpiry(const JsonField *field, TrackRequest *request)
{
	if (field == NULL || field->type == JSON_TOKEN_NULL)
		return NULL;
	if (field->type == JSON_TOKEN_NUMBER)
	{
		request->expires_in = strtod(field->text, NULL);
		if (request->expires_in > 0 && request->expires_in <= EXPIRES_MAX)
			return NULL;
	}
	return psprintf("\"expires_in\" has to be a number of seconds up to %d", EXPIRES_MAX);
}

static const char *
ReadKeys(const JsonField *field, TrackRequest *request)
{
	ListCell *lc;

	if (field == NULL || field->type == JSON_TOKEN_NULL)
		return NULL;
	if (!JsonFieldStrings(field, PRESENCE_KEYS_MAX, &request->keys))
		return psprintf("\"exclusive\" has to be an array of at most %d strings",
						PRESENCE_KEYS_MAX);
	foreach(lc, request->keys)
		if (strlen(lfirst(lc)) == 0 || strlen(lfirst(lc)) > PRESENCE_KEY_MAX)
			return psprintf("a key in \"exclusive\" has to have 1 to %d bytes", PRESENCE_KEY_MAX);
	return NULL;
}

/* What is wrong with the message, or NULL. */
static const char *
ReadTrack(JsonMessage *message, TrackRequest *request)
{
	const JsonField *state = JsonMessageGet(message, "state");
	const JsonField *kind = JsonMessageGet(message, "kind");
	const char *problem;

	request->state = state != NULL ? state->raw : "{}";
	request->length = state != NULL ? state->raw_length : 2;
	if (kind != NULL && kind->type != JSON_TOKEN_NULL)
	{
		if (kind->type != JSON_TOKEN_STRING || kind->text[0] == '\0' ||
			strlen(kind->text) > PRESENCE_KIND_MAX)
			return psprintf("\"kind\" has to be a string of 1 to %d bytes", PRESENCE_KIND_MAX);
		request->kind = kind->text;
	}
	problem = ReadExpiry(JsonMessageGet(message, "expires_in"), request);
	if (problem != NULL)
		return problem;
	return ReadKeys(JsonMessageGet(message, "exclusive"), request);
}

static bool
KeysAreFree(Connection *connection, const char *id, Room *room, Member *member, List *names)
{
	ListCell *lc;

	foreach(lc, names)
	{
		PresenceKey *key = KeyFind(room, lfirst(lc));
		StringInfoData m;
		char *text;

		if (key == NULL || key->holder == member)
			continue;
		text = psprintf("key \"%s\" is held by \"%s\"", key->name, key->holder->user);
		initStringInfo(&m);
		appendStringInfo(&m, "{\"type\":\"error\",\"id\":%s,\"code\":\"55P03\",\"message\":", id);
		EncodeString(&m, text, strlen(text));
		appendStringInfoString(&m, ",\"hint\":\"Try again when the key is held by nobody.\","
								   "\"key\":");
		EncodeString(&m, key->name, strlen(key->name));
		appendStringInfoString(&m, ",\"holder\":");
		EncodeString(&m, key->holder->user, strlen(key->holder->user));
		appendStringInfoChar(&m, '}');
		ProtocolSend(connection, m.data, m.len);
		return false;
	}
	return true;
}

/* A track of the user whose connection was lost: the one that said the same, or the oldest. */
static Track *
FindAway(Member *member, const TrackRequest *request)
{
	Track *oldest = NULL;
	dlist_iter iter;

	dlist_foreach(iter, &member->tracks)
	{
		Track *track = dlist_container(Track, member_node, iter.cur);

		if (track->viewer != NULL)
			continue;
		if (track->base.state != NULL && strlen(track->base.state) == request->length &&
			memcmp(track->base.state, request->state, request->length) == 0)
			return track;
		if (oldest == NULL)
			oldest = track;
	}
	return oldest;
}

static void
Apply(Viewer *viewer, Member *member, Track *track, const TrackRequest *request, int kind)
{
	Layer layer;

	/* First take, then let go, so that a key that stays is held all the time. */
	LayerMake(&layer, member, request->state, request->length, kind, request->keys);
	LayerClear(&track->passing);
	if (request->expires_in == 0 || track->viewer == NULL)
		LayerClear(&track->base);
	TrackAttach(track, viewer);
	if (request->expires_in == 0)
		track->base = layer;
	else
	{
		track->passing = layer;
		track->passing_ends = feed_now + (int64) ceil(request->expires_in * USECS_PER_SEC);
	}
	TrackSetTimer(track);
	MemberRefresh(member);
}

static void
DoTrack(Viewer *viewer, Connection *connection, JsonMessage *message, const char *id)
{
	TrackRequest request = {0};
	const char *problem;
	const Spelling *name;
	Room *room;
	Member *member;
	Track *track;
	int kind = -1;

	room = viewer->room;
	name = viewer->subscription->name;
	problem = ReadTrack(message, &request);
	if (problem != NULL)
	{
		ProtocolError(connection, id, name, "22023", problem, NULL);
		return;
	}
	if (request.length > room->options->max_state)
	{
		ProtocolError(connection, id, name, "54000",
					  psprintf("state is longer than %d bytes", room->options->max_state),
					  "Say less, or raise \"max_state\" of the channel's presence.");
		return;
	}
	if (feed_memory >= MEMORY_FULL)
	{
		ProtocolError(connection, id, name, "53200", "the feed has no memory for more members",
					  "Try again later, or raise changefeed.worker_memory.");
		return;
	}

	request.user = UserOf(connection, connection->identity);
	member = MemberFind(room, request.user);
	if (!KeysAreFree(connection, id, room, member, request.keys))
		return;
	if ((member == NULL || member->ntracks == 0) && room->nmembers >= room->options->max_members)
	{
		ProtocolError(connection, id, name, "53400",
					  psprintf("channel is full: it has %d members", room->nmembers),
					  "Try again later, or raise \"max_members\" of the channel's presence.");
		return;
	}
	if (request.kind != NULL)
	{
		kind = KindIntern(room, request.kind);
		if (kind < 0)
		{
			ProtocolError(connection, id, name, "53400", "channel has too many kinds of members",
						  psprintf("There may be %d at a time.", PRESENCE_KINDS_MAX));
			return;
		}
		if (room->kinds[kind].limit >= 0 && room->kinds[kind].nmembers >= room->kinds[kind].limit &&
			(member == NULL || (member->kinds & (UINT32_C(1) << kind)) == 0))
		{
			ProtocolError(connection, id, name, "53400",
						  psprintf("channel is full: it has %d members of kind \"%s\"",
								   room->kinds[kind].nmembers, request.kind),
						  "Try again later, or track as another kind.");
			return;
		}
	}
	track = viewer->track;
	if (track == NULL && member != NULL)
	{
		track = FindAway(member, &request);
		if (track == NULL && member->ntracks >= PRESENCE_TRACKS_MAX)
		{
			ProtocolError(connection, id, name, "53400",
						  psprintf("user is in the channel with %d connections", member->ntracks),
						  NULL);
			return;
		}
	}

	if (member == NULL)
		member = MemberIntern(room, request.user);
	if (track == NULL)
		track = TrackCreate(member);
	Apply(viewer, member, track, &request, kind);
	ProtocolOk(connection, "ok", id);
}

/* ---- the list, page by page ---- */

static void
DoList(Viewer *viewer, Connection *connection, JsonMessage *message, const char *id)
{
	const char *after = JsonMessageString(message, "after");
	const JsonField *limit_field = JsonMessageGet(message, "limit");
	StringInfoData states;
	StringInfoData meta;
	StringInfoData m;
	StringInfoData metas;
	uint64 cursor = 0;
	uint64 last = 0;
	long limit = LIST_DEFAULT;
	dlist_iter iter;
	int n = 0;

	if (after != NULL)
	{
		char *end;

		cursor = strtoull(after, &end, 10);
		if (*end != '\0' || after[0] < '0' || after[0] > '9')
		{
			ProtocolError(connection, id, viewer->subscription->name, "22023",
						  "\"after\" is not a cursor",
						  "Send \"next\" exactly as the server gave it.");
			return;
		}
	}
	if (limit_field != NULL)
	{
		limit = limit_field->type == JSON_TOKEN_NUMBER ? strtol(limit_field->text, NULL, 10) : 0;
		if (limit < 1 || limit > LIST_MAX)
		{
			ProtocolError(connection, id, viewer->subscription->name, "22023",
						  psprintf("\"limit\" has to be a number from 1 to %d", LIST_MAX), NULL);
			return;
		}
	}

	initStringInfo(&m);
	initStringInfo(&metas);
	initStringInfo(&states);
	initStringInfo(&meta);
	appendStringInfo(&m, "{\"type\":\"presence\",\"id\":%s,\"channel\":", id);
	appendBinaryStringInfo(&m, viewer->subscription->name->json,
						   viewer->subscription->name->length);
	appendStringInfoString(&m, ",\"members\":{");
	dlist_foreach(iter, &viewer->room->members)
	{
		Member *member = dlist_container(Member, room_node, iter.cur);

		if (member->serial <= cursor || member->ntracks == 0)
			continue;
		if (n == limit || m.len > PRESENCE_PAGE)
		{
			last = cursor;
			break;
		}
		resetStringInfo(&states);
		resetStringInfo(&meta);
		MemberStates(member, &states);
		MemberMeta(member, &meta);
		if (n++ > 0)
			appendStringInfoChar(&m, ',');
		EncodeString(&m, member->user, strlen(member->user));
		appendStringInfoChar(&m, ':');
		appendBinaryStringInfo(&m, states.data, states.len);
		if (meta.len > 0)
		{
			if (metas.len > 0)
				appendStringInfoChar(&metas, ',');
			EncodeString(&metas, member->user, strlen(member->user));
			appendStringInfoChar(&metas, ':');
			appendBinaryStringInfo(&metas, meta.data, meta.len);
		}
		cursor = member->serial;
	}
	appendStringInfoChar(&m, '}');
	if (metas.len > 0)
		appendStringInfo(&m, ",\"meta\":{%s}", metas.data);
	appendStringInfoChar(&m, ',');
	RoomCount(viewer->room, &m);
	if (last != 0)
		appendStringInfo(&m, ",\"next\":\"" UINT64_FORMAT "\"", last);
	appendStringInfoChar(&m, '}');
	ProtocolSend(connection, m.data, m.len);
}

void
PresenceMessage(Connection *connection, JsonMessage *message, const char *id, const char *data,
				Size length)
{
	const char *type = JsonMessageString(message, "type");
	Viewer *viewer = ViewerOf(connection, message, id, data, length);

	if (viewer == NULL)
		return;
	if (strcmp(type, "track") == 0)
		DoTrack(viewer, connection, message, id);
	else if (strcmp(type, "presence") == 0)
		DoList(viewer, connection, message, id);
	else
	{
		if (viewer->track != NULL)
			TrackEnd(viewer->track);
		ProtocolOk(connection, "ok", id);
	}
}

/* ---- what becomes of subscriptions ---- */

void
PresenceSubscribed(Subscription *s)
{
	Channel *channel = s->instance->channel;

	Http *http = s->connection->http;

	/* A poll waits for rows, and its answer may be shared. */
	if (channel->presence == NULL || s->instance->starred ||
		(http != NULL && http->kind != LINK_STREAM_EVENTS))
		DropEarly(s, true);
	else if (s->presence == NULL)
		(void) ViewerCreate(s, RoomIntern(channel, s->instance->params));
}

void
PresenceUnsubscribed(Subscription *s)
{
	DropEarly(s, true);
	if (s->presence != NULL)
		ViewerFree(s->presence);
}

void
PresenceMoved(Subscription *s)
{
	/* The room is known by the channel's name, so it is the same one. */
	if (s->presence != NULL && s->instance->channel->presence == NULL)
		ViewerFree(s->presence);
	else if (s->presence != NULL)
		(void) RoomIntern(s->instance->channel, s->instance->params);
	else if (s->announced)
		PresenceSubscribed(s);
}

void
PresenceConnectionLost(Connection *connection)
{
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		DropEarly(s, false);
		if (s->presence != NULL && s->presence->track != NULL)
			TrackAway(s->presence->track);
	}
}

void
PresenceIdentityChanges(Connection *connection, Identity *identity)
{
	const char *user = UserOf(connection, identity);
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		if (s->presence != NULL && s->presence->track != NULL &&
			strcmp(s->presence->track->member->user, user) != 0)
			TrackEnd(s->presence->track);
	}
}

static bool
MayStayAway(const Track *track, List *revocations)
{
	IdentityInfo info = track->identity->info;
	JwtResult error;
	ListCell *lc;

	foreach(lc, revocations)
	{
		const Revocation *revocation = lfirst(lc);

		if (revocation->session != NULL && strcmp(revocation->session, track->session) == 0)
			return false;
	}
	info.issued = track->issued;
	info.token_claims = track->token_claims;
	return RevocationsAllow(&info, &error) && IdentityRefresh(&info, ChannelsRoleAllowed, &error);
}

void
PresenceCheckAway(List *revocations)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &presence_away)
	{
		Track *track = dlist_container(Track, away_node, iter.cur);

		if (!MayStayAway(track, revocations))
			TrackEnd(track);
	}
}
