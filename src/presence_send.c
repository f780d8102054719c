/*-------------------------------------------------------------------------
 *
 * presence_send.c
 *		What viewers are told: the list at first, then diffs.
 *
 * A diff is made once for a room and interval, and sent as one message for each
 * spelling of the channel's name and gateway.  It has what differs from what was
 * told before, so who joins and leaves in between is not in it.
 *
 * Process: feed worker.  Memory: the turn's; what was told is its member's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "encode.h"
#include "gateways.h"
#include "message.h"
#include "presence_internal.h"

#include "utils/memutils.h"

/* What may be on its way to one connection, in all its channels. */
#define WINDOW (256 * 1024)

/* With so much queued for a gateway diffs wait, and grow together. */
#define LINK_FULL  (4 * 1024 * 1024)
#define LINK_RETRY 50 /* ms */

/* What a room sends at once; the rest comes a little later. */
#define FLUSH_BYTES (1024 * 1024)

/* ---- texts ---- */

void
MemberStates(Member *member, StringInfo states)
{
	bool first = true;
	dlist_iter iter;

	appendStringInfoChar(states, '[');
	dlist_foreach(iter, &member->tracks)
	{
		Track *track = dlist_container(Track, member_node, iter.cur);
		Layer *layer = track->passing.state != NULL ? &track->passing : &track->base;

		if (!first)
			appendStringInfoChar(states, ',');
		first = false;
		appendStringInfoString(states, layer->state);
	}
	appendStringInfoChar(states, ']');
}

static List *
AddHolds(List *holds, Layer *layer, uint64 run)
{
	int i;

	for (i = 0; i < layer->nkeys; i++)
	{
		if (layer->keys[i]->seen == run)
			continue;
		layer->keys[i]->seen = run;
		holds = lappend(holds, layer->keys[i]);
	}
	return holds;
}

List *
MemberHolds(Member *member)
{
	static uint64 run;
	List *holds = NIL;
	dlist_iter iter;

	run++;
	dlist_foreach(iter, &member->tracks)
	{
		Track *track = dlist_container(Track, member_node, iter.cur);

		holds = AddHolds(holds, &track->base, run);
		holds = AddHolds(holds, &track->passing, run);
	}
	return holds;
}

void
MemberMeta(Member *member, StringInfo meta)
{
	List *holds = MemberHolds(member);
	bool any = false;
	ListCell *lc;
	int i;

	for (i = 0; i < member->room->nkinds; i++)
	{
		const char *name = member->room->kinds[i].name;

		if ((member->kinds & (UINT32_C(1) << i)) == 0)
			continue;
		appendStringInfoString(meta, any ? "," : "{\"kinds\":[");
		EncodeString(meta, name, strlen(name));
		any = true;
	}
	if (any)
		appendStringInfoChar(meta, ']');
	foreach(lc, holds)
	{
		PresenceKey *key = lfirst(lc);

		appendStringInfoString(meta, lc != list_head(holds) ? ","
									 : any					? ",\"holds\":["
															: "{\"holds\":[");
		EncodeString(meta, key->name, strlen(key->name));
	}
	if (holds != NIL)
		appendStringInfoChar(meta, ']');
	if (meta->len > 0)
		appendStringInfoChar(meta, '}');
	list_free(holds);
}

void
RoomCount(Room *room, StringInfo out)
{
	bool first = true;
	int i;

	appendStringInfo(out, "\"count\":%d,\"kinds\":{", room->nmembers);
	for (i = 0; i < room->nkinds; i++)
	{
		if (room->kinds[i].nmembers == 0)
			continue;
		if (!first)
			appendStringInfoChar(out, ',');
		first = false;
		EncodeString(out, room->kinds[i].name, strlen(room->kinds[i].name));
		appendStringInfo(out, ":%d", room->kinds[i].nmembers);
	}
	appendStringInfoChar(out, '}');
}

/* One message, behind the channel's name. */
typedef struct Body
{
	StringInfoData joined;
	StringInfoData meta;
	StringInfoData left;
} Body;

/* At the beginning of a body, but for "full": what it is a part of goes on. */
#define MORE "\"more\":true,"

static void
AppendMember(StringInfo out, const char *user, const char *text)
{
	if (out->len > 0)
		appendStringInfoChar(out, ',');
	EncodeString(out, user, strlen(user));
	appendStringInfoChar(out, ':');
	appendStringInfoString(out, text);
}

static void
BodyBegin(Body *body)
{
	initStringInfo(&body->joined);
	initStringInfo(&body->meta);
	initStringInfo(&body->left);
}

static bool
BodyIsFull(const Body *body)
{
	return body->joined.len + body->meta.len + body->left.len >= PRESENCE_PAGE;
}

static char *
BodyEnd(Body *body, bool full, bool more)
{
	StringInfoData m;

	initStringInfo(&m);
	if (full)
		appendStringInfoString(&m, "\"full\":true,");
	if (more)
		appendStringInfoString(&m, MORE);
	appendStringInfo(&m, "\"joined\":{%s},", body->joined.data);
	if (body->meta.len > 0)
		appendStringInfo(&m, "\"meta\":{%s},", body->meta.data);
	appendStringInfo(&m, "\"left\":{%s}}", body->left.data);
	pfree(body->joined.data);
	pfree(body->meta.data);
	pfree(body->left.data);
	return m.data;
}

static void
MessageFor(const Spelling *name, const char *body, StringInfo m)
{
	initStringInfo(m);
	appendStringInfoString(m, "{\"type\":\"presence\",\"channel\":");
	appendBinaryStringInfo(m, name->json, name->length);
	appendStringInfoChar(m, ',');
	appendStringInfoString(m, body);
}

/* ---- windows ---- */

static bool
HasRoom(const Connection *connection)
{
	return connection->presence_sent < WINDOW;
}

static void
Count(Connection *connection, Size length)
{
	connection->presence_sent += length;
	if (connection->presence_marked == 0 && connection->presence_sent >= WINDOW / 2)
	{
		connection->presence_marked = connection->presence_sent;
		GatewayMark(connection, MARK_PRESENCE);
	}
}

void
PresenceFlushed(Connection *connection)
{
	connection->presence_sent -= connection->presence_marked;
	connection->presence_marked = 0;
	Count(connection, 0);
}

/* ---- diffs ---- */

/*
 * Who has been told what was before, and may be told more; the others get the list later.
 * Those who have a part of the list are in a list of their own.
 */
static List *
Receivers(Room *room, List **listing)
{
	List *receivers = NIL;
	dlist_iter iter;

	*listing = NIL;

	dlist_foreach(iter, &room->viewers)
	{
		Viewer *viewer = dlist_container(Viewer, room_node, iter.cur);

		if (viewer->state == VIEWER_NEW)
			continue;
		if (!MessageMayReceive(viewer->subscription) || !HasRoom(viewer->subscription->connection))
			ViewerRestart(viewer);
		else if (viewer->state == VIEWER_LIST)
			*listing = lappend(*listing, viewer->subscription);
		else
			receivers = lappend(receivers, viewer->subscription);
	}
	return receivers;
}

static void
SendTo(List *receivers, const char *body)
{
	Size length = strlen(body);
	MessageGroup *groups;
	ListCell *lc;
	int ngroups;
	int i;

	groups = MessageGroups(receivers, &ngroups);
	for (i = 0; i < ngroups; i++)
	{
		StringInfoData m;

		MessageFor(groups[i].one->name, body, &m);
		GatewayShare(groups[i].gateway, groups[i].numbers, groups[i].n, m.data, m.len);
		pfree(m.data);
	}
	foreach(lc, receivers)
	{
		Subscription *s = lfirst(lc);

		Count(s->connection, length + s->name->length);
	}
	list_free(receivers);
}

static void
SendToViewers(Room *room, const char *body)
{
	List *listing;

	SendTo(Receivers(room, &listing), body);

	/* A diff does not end their list. */
	if (listing != NIL)
		SendTo(listing, strncmp(body, MORE, strlen(MORE)) == 0 ? body : psprintf(MORE "%s", body));
}

static bool
Differs(const char *told, const StringInfo now)
{
	return now->len == 0 ? told != NULL : told == NULL || strcmp(told, now->data) != 0;
}

static void
Replace(char **told, const StringInfo now)
{
	if (*told != NULL)
		pfree(*told);
	*told = now->len > 0 ? MemoryContextStrdup(presence_context, now->data) : NULL;
}

/* The changes of the members, as bodies of messages; not more than FLUSH_BYTES. */
static List *
TakeChanges(Room *room)
{
	List *bodies = NIL;
	StringInfoData states;
	StringInfoData meta;
	Body body;
	bool any = false;

	initStringInfo(&states);
	initStringInfo(&meta);
	while (!dlist_is_empty(&room->dirty) && list_length(bodies) < FLUSH_BYTES / PRESENCE_PAGE)
	{
		Member *member = dlist_container(Member, dirty_node, dlist_pop_head_node(&room->dirty));

		member->dirty = false;
		resetStringInfo(&states);
		resetStringInfo(&meta);
		if (member->ntracks > 0)
		{
			MemberStates(member, &states);
			MemberMeta(member, &meta);
		}
		if (!Differs(member->told, &states) && !Differs(member->told_meta, &meta))
			continue;
		if (!any)
			BodyBegin(&body);
		else if (BodyIsFull(&body))
		{
			bodies = lappend(bodies, BodyEnd(&body, false, true));
			BodyBegin(&body);
		}
		any = true;
		if (member->ntracks == 0)
		{
			AppendMember(&body.left, member->user, member->told);
			MemberFree(member);
			continue;
		}
		AppendMember(&body.joined, member->user, states.data);
		if (meta.len > 0)
			AppendMember(&body.meta, member->user, meta.data);
		Replace(&member->told, &states);
		Replace(&member->told_meta, &meta);
	}
	if (any)
		bodies = lappend(bodies, BodyEnd(&body, false, !dlist_is_empty(&room->dirty)));
	return bodies;
}

/* Has `told` say how many there are.  False: it did so already. */
static bool
TakeCount(Room *room)
{
	StringInfoData m;
	bool differs;

	initStringInfo(&m);
	RoomCount(room, &m);
	appendStringInfoChar(&m, '}');
	differs = room->told == NULL || strcmp(room->told, m.data) != 0;
	if (differs)
		Replace(&room->told, &m);
	pfree(m.data);
	return differs;
}

static void
Flush(Room *room)
{
	List *bodies = NIL;
	ListCell *lc;

	if (room->options->count_only)
	{
		if (TakeCount(room))
			bodies = list_make1(room->told);
	}
	else
		bodies = TakeChanges(room);
	foreach(lc, bodies)
		SendToViewers(room, lfirst(lc));
	if (!dlist_is_empty(&room->dirty))
		TimerSet(&room->timer, TimestampTzPlusMilliseconds(feed_now, LINK_RETRY));
	RoomRelease(room);
}

/* ---- lists ---- */

static void
SendOne(Viewer *viewer, const char *body)
{
	StringInfoData m;

	MessageFor(viewer->subscription->name, body, &m);
	ProtocolSend(viewer->subscription->connection, m.data, m.len);
	Count(viewer->subscription->connection, m.len);
	pfree(m.data);
}

/* As much as there is room for.  True: it has all. */
static bool
SendList(Viewer *viewer)
{
	Room *room = viewer->room;
	bool full = viewer->state == VIEWER_NEW;
	Body body;
	dlist_iter iter;

	if (room->options->count_only)
	{
		/* What the others were told, and not what they will be told soon, he as well. */
		if (room->told == NULL)
			(void) TakeCount(room);
		SendOne(viewer, psprintf("\"full\":true,%s", room->told));
		return true;
	}
	if (full)
	{
		viewer->cursor = 0;

		/* Who comes later is told with a diff. */
		viewer->until = dlist_is_empty(&room->members)
							? 0
							: dlist_tail_element(Member, room_node, &room->members)->serial;
		viewer->state = VIEWER_LIST;
	}
	BodyBegin(&body);
	dlist_foreach(iter, &room->members)
	{
		Member *member = dlist_container(Member, room_node, iter.cur);

		if (member->serial <= viewer->cursor || member->told == NULL)
			continue;
		if (member->serial > viewer->until)
			break;
		if (BodyIsFull(&body))
		{
			SendOne(viewer, BodyEnd(&body, full, true));
			full = false;
			if (!HasRoom(viewer->subscription->connection))
				return false;
			BodyBegin(&body);
		}
		AppendMember(&body.joined, member->user, member->told);
		if (member->told_meta != NULL)
			AppendMember(&body.meta, member->user, member->told_meta);
		viewer->cursor = member->serial;
	}
	SendOne(viewer, BodyEnd(&body, full, false));
	return true;
}

/* False: the gateways have enough to do. */
static bool
SendLists(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &presence_waiting)
	{
		Viewer *viewer = dlist_container(Viewer, waiting_node, iter.cur);
		Subscription *s = viewer->subscription;

		if (s->early != NIL)
			PresenceHandleEarly(s);
		if (!MessageMayReceive(s))
		{
			/* What it may see has to be found out again: from the beginning. */
			viewer->state = VIEWER_NEW;
			continue;
		}
		if (!HasRoom(s->connection))
			continue;
		if (GatewaysPending() > LINK_FULL)
			return false;
		if (SendList(viewer))
		{
			dlist_delete(&viewer->waiting_node);
			viewer->state = VIEWER_CURRENT;
		}
	}
	return true;
}

long
PresenceAdvance(void)
{
	PresenceTimer *timer;

	while ((timer = TimerFirst()) != NULL && timer->at <= feed_now)
	{
		if (!timer->is_room)
		{
			TrackTimer(timer);
			continue;
		}
		if (GatewaysPending() > LINK_FULL)
		{
			TimerSet(timer, TimestampTzPlusMilliseconds(feed_now, LINK_RETRY));
			continue;
		}
		TimerSet(timer, 0);
		Flush((Room *) ((char *) timer - offsetof(Room, timer)));
	}
	return SendLists() ? -1 : LINK_RETRY;
}

long
PresenceWait(void)
{
	PresenceTimer *timer = TimerFirst();

	if (timer == NULL)
		return -1;
	return (long) TimestampDifferenceMilliseconds(feed_now, timer->at) + 1;
}
