/*-------------------------------------------------------------------------
 *
 * presence_room.c
 *		Rooms, members, tracks, keys and viewers as objects.
 *
 * See presence_internal.h.  What changes here is told later: whoever is
 * concerned is put on its room's list, and the room's timer is set.
 *
 * Process: feed worker.  Memory: presence_context, freed piecewise.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "presence_internal.h"
#include "revocations.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

typedef struct LinkedEntry
{
	uint64 hash;
	PresenceLinked *first;
} LinkedEntry;

MemoryContext presence_context;
dlist_head presence_away = DLIST_STATIC_INIT(presence_away);
dlist_head presence_waiting = DLIST_STATIC_INIT(presence_waiting);

static HTAB *rooms;
static HTAB *members;
static HTAB *keys;
static pairingheap *timers;
static uint64 next_room;
static uint64 next_member;

static HTAB *
MakeTable(const char *name)
{
	HASHCTL ctl;

	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(LinkedEntry);
	ctl.hcxt = presence_context;
	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static int
CompareTimers(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz x = pairingheap_const_container(PresenceTimer, node, a)->at;
	TimestampTz y = pairingheap_const_container(PresenceTimer, node, b)->at;

	/* The heap has the greatest on top. */
	return x < y ? 1 : x > y ? -1 : 0;
}

static void
Initialize(void)
{
	MemoryContext old;

	if (presence_context != NULL)
		return;
	presence_context = AllocSetContextCreate(feed_context, "changefeed presence",
											 ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(presence_context);
	rooms = MakeTable("changefeed rooms");
	members = MakeTable("changefeed members");
	keys = MakeTable("changefeed presence keys");
	timers = pairingheap_allocate(CompareTimers, NULL);
	MemoryContextSwitchTo(old);
}

static PresenceLinked *
LinkedFirst(HTAB *table, uint64 hash)
{
	LinkedEntry *entry = hash_search(table, &hash, HASH_FIND, NULL);

	return entry != NULL ? entry->first : NULL;
}

static void
LinkedAdd(HTAB *table, uint64 hash, PresenceLinked *linked)
{
	bool found;
	LinkedEntry *entry = hash_search(table, &hash, HASH_ENTER, &found);

	linked->hash = hash;
	linked->next = found ? entry->first : NULL;
	entry->first = linked;
}

static void
LinkedRemove(HTAB *table, PresenceLinked *linked)
{
	LinkedEntry *entry = hash_search(table, &linked->hash, HASH_FIND, NULL);
	PresenceLinked **link = &entry->first;

	while (*link != linked)
		link = &(*link)->next;
	*link = linked->next;
	if (entry->first == NULL)
		hash_search(table, &linked->hash, HASH_REMOVE, NULL);
}

static uint64
HashOf(const char *text, Size length, uint64 seed)
{
	return hash_bytes_extended((const unsigned char *) text, (int) length, seed);
}

/* ---- timers ---- */

PresenceTimer *
TimerFirst(void)
{
	if (timers == NULL || pairingheap_is_empty(timers))
		return NULL;
	return pairingheap_container(PresenceTimer, node, pairingheap_first(timers));
}

void
TimerSet(PresenceTimer *timer, TimestampTz at)
{
	if (timer->at == at)
		return;
	if (timer->at != 0)
		pairingheap_remove(timers, &timer->node);
	timer->at = at;
	if (at != 0)
		pairingheap_add(timers, &timer->node);
}

void
TrackSetTimer(Track *track)
{
	TimestampTz at = track->passing.state != NULL ? track->passing_ends : 0;

	if (track->viewer == NULL && (at == 0 || track->away_ends < at))
		at = track->away_ends;
	TimerSet(&track->timer, at);
}

void
TrackTimer(PresenceTimer *timer)
{
	Track *track = (Track *) ((char *) timer - offsetof(Track, timer));
	Member *member = track->member;

	if (track->viewer == NULL && track->away_ends <= feed_now)
	{
		TrackEnd(track);
		return;
	}
	LayerClear(&track->passing);
	if (track->base.state == NULL)
	{
		TrackEnd(track);
		return;
	}
	TrackSetTimer(track);
	MemberRefresh(member);
}

/* ---- rooms ---- */

static char *
RoomKey(Channel *channel, char *const *params, int *length)
{
	StringInfoData s;
	int i;

	initStringInfo(&s);
	appendBinaryStringInfo(&s, channel->name, (int) strlen(channel->name) + 1);
	for (i = 0; i < channel->template->nparams; i++)
		appendBinaryStringInfo(&s, params[i], (int) strlen(params[i]) + 1);
	*length = s.len;
	return s.data;
}

Room *
RoomFind(Channel *channel, char *const *params)
{
	PresenceLinked *linked;
	int length;
	char *key;

	if (rooms == NULL)
		return NULL;
	key = RoomKey(channel, params, &length);
	for (linked = LinkedFirst(rooms, HashOf(key, length, 0)); linked != NULL; linked = linked->next)
	{
		Room *room = (Room *) linked;

		if (room->key_length == length && memcmp(room->key, key, length) == 0)
			return room;
	}
	return NULL;
}

static void
SetOptions(Room *room, Channel *channel)
{
	Size size = offsetof(PresenceOptions, limits) +
				sizeof(PresenceLimit) * channel->presence->nlimits;
	int i;
	int k;

	if (room->options != NULL)
		pfree(room->options);
	room->options = MemoryContextAlloc(presence_context, size);
	memcpy(room->options, channel->presence, size);
	room->channel = channel->serial;
	for (i = 0; i < room->nkinds; i++)
	{
		room->kinds[i].limit = -1;
		for (k = 0; k < room->options->nlimits; k++)
			if (strcmp(room->options->limits[k].kind, room->kinds[i].name) == 0)
				room->kinds[i].limit = room->options->limits[k].limit;
	}
}

/* Viewers were told counts, and are to be told members, or the other way round. */
static void
TellAnew(Room *room)
{
	dlist_mutable_iter iter;

	if (room->told != NULL)
		pfree(room->told);
	room->told = NULL;
	dlist_foreach_modify(iter, &room->members)
	{
		Member *member = dlist_container(Member, room_node, iter.cur);

		if (member->dirty)
			dlist_delete(&member->dirty_node);
		member->dirty = false;
		if (member->told != NULL)
			pfree(member->told);
		if (member->told_meta != NULL)
			pfree(member->told_meta);
		member->told = member->told_meta = NULL;
		MemberRefresh(member);
	}
	dlist_foreach_modify(iter, &room->viewers)
		ViewerRestart(dlist_container(Viewer, room_node, iter.cur));
}

Room *
RoomIntern(Channel *channel, char *const *params)
{
	Room *room;
	char *key;
	int length;

	Initialize();
	room = RoomFind(channel, params);
	if (room == NULL)
	{
		key = RoomKey(channel, params, &length);
		room = MemoryContextAllocZero(presence_context, sizeof(Room));
		room->key = MemoryContextAlloc(presence_context, length);
		memcpy(room->key, key, length);
		room->key_length = length;
		room->id = ++next_room;
		room->timer.is_room = true;
		dlist_init(&room->viewers);
		dlist_init(&room->members);
		dlist_init(&room->dirty);
		LinkedAdd(rooms, HashOf(key, length, 0), &room->linked);
	}
	if (room->channel != channel->serial)
	{
		bool counted = room->options != NULL && room->options->count_only;
		bool known = room->options != NULL;

		SetOptions(room, channel);
		if (known && counted != room->options->count_only)
			TellAnew(room);
	}
	return room;
}

void
RoomRelease(Room *room)
{
	int i;

	if (!dlist_is_empty(&room->viewers) || !dlist_is_empty(&room->members))
		return;
	TimerSet(&room->timer, 0);
	LinkedRemove(rooms, &room->linked);
	for (i = 0; i < room->nkinds; i++)
		pfree(room->kinds[i].name);
	if (room->told != NULL)
		pfree(room->told);
	pfree(room->options);
	pfree(room->key);
	pfree(room);
}

void
RoomTouch(Room *room)
{
	if (room->timer.at == 0)
		TimerSet(&room->timer, TimestampTzPlusMilliseconds(feed_now, room->options->interval));
}

int
KindIntern(Room *room, const char *name)
{
	PresenceKind *kind = NULL;
	int i;

	for (i = 0; i < room->nkinds; i++)
	{
		if (strcmp(room->kinds[i].name, name) == 0)
			return i;
		if (room->kinds[i].nmembers == 0)
			kind = &room->kinds[i];
	}
	if (room->nkinds < PRESENCE_KINDS_MAX)
		kind = &room->kinds[room->nkinds++];
	else if (kind != NULL)
		pfree(kind->name);
	else
		return -1;
	kind->name = MemoryContextStrdup(presence_context, name);
	kind->nmembers = 0;
	kind->limit = -1;
	for (i = 0; i < room->options->nlimits; i++)
		if (strcmp(room->options->limits[i].kind, name) == 0)
			kind->limit = room->options->limits[i].limit;
	return (int) (kind - room->kinds);
}

/* ---- members ---- */

Member *
MemberFind(Room *room, const char *user)
{
	PresenceLinked *linked;

	for (linked = LinkedFirst(members, HashOf(user, strlen(user), room->id)); linked != NULL;
		 linked = linked->next)
	{
		Member *member = (Member *) linked;

		if (member->room == room && strcmp(member->user, user) == 0)
			return member;
	}
	return NULL;
}

Member *
MemberIntern(Room *room, const char *user)
{
	Member *member = MemberFind(room, user);

	if (member != NULL)
		return member;
	member = MemoryContextAllocZero(presence_context, sizeof(Member));
	member->room = room;
	member->user = MemoryContextStrdup(presence_context, user);
	member->serial = ++next_member;
	dlist_init(&member->tracks);
	dlist_push_tail(&room->members, &member->room_node);
	LinkedAdd(members, HashOf(user, strlen(user), room->id), &member->linked);
	return member;
}

void
MemberFree(Member *member)
{
	Assert(member->ntracks == 0 && !member->counted);
	if (member->dirty)
		dlist_delete(&member->dirty_node);
	dlist_delete(&member->room_node);
	LinkedRemove(members, &member->linked);
	if (member->told != NULL)
		pfree(member->told);
	if (member->told_meta != NULL)
		pfree(member->told_meta);
	pfree(member->user);
	pfree(member);
}

void
MemberRefresh(Member *member)
{
	Room *room = member->room;
	uint32 kinds = 0;
	dlist_iter iter;
	int i;

	dlist_foreach(iter, &member->tracks)
	{
		Track *track = dlist_container(Track, member_node, iter.cur);

		if (track->base.state != NULL && track->base.kind >= 0)
			kinds |= UINT32_C(1) << track->base.kind;
		if (track->passing.state != NULL && track->passing.kind >= 0)
			kinds |= UINT32_C(1) << track->passing.kind;
	}
	for (i = 0; i < room->nkinds; i++)
		room->kinds[i].nmembers += (int) ((kinds >> i) & 1) - (int) ((member->kinds >> i) & 1);
	member->kinds = kinds;
	if (!member->counted && member->ntracks > 0)
	{
		member->counted = true;
		member->since = feed_now;
		room->nmembers++;
	}
	else if (member->counted && member->ntracks == 0)
	{
		member->counted = false;
		room->nmembers--;
	}
	RoomTouch(room);
	if (member->ntracks == 0 && member->told == NULL)
		MemberFree(member);
	else if (!member->dirty && !room->options->count_only)
	{
		member->dirty = true;
		dlist_push_tail(&room->dirty, &member->dirty_node);
	}
}

/* ---- keys and layers ---- */

PresenceKey *
KeyFind(Room *room, const char *name)
{
	PresenceLinked *linked;

	for (linked = LinkedFirst(keys, HashOf(name, strlen(name), room->id)); linked != NULL;
		 linked = linked->next)
	{
		PresenceKey *key = (PresenceKey *) linked;

		if (key->room == room && strcmp(key->name, name) == 0)
			return key;
	}
	return NULL;
}

static PresenceKey *
KeyHold(Member *member, const char *name)
{
	PresenceKey *key = KeyFind(member->room, name);

	if (key == NULL)
	{
		key = MemoryContextAllocZero(presence_context, sizeof(PresenceKey));
		key->room = member->room;
		key->name = MemoryContextStrdup(presence_context, name);
		key->holder = member;
		LinkedAdd(keys, HashOf(name, strlen(name), member->room->id), &key->linked);
	}
	Assert(key->holder == member);
	key->nholds++;
	return key;
}

static void
KeyRelease(PresenceKey *key)
{
	if (--key->nholds > 0)
		return;
	LinkedRemove(keys, &key->linked);
	pfree(key->name);
	pfree(key);
}

void
LayerMake(Layer *layer, Member *member, const char *state, int length, int kind, List *names)
{
	ListCell *lc;

	layer->state = MemoryContextAlloc(presence_context, length + 1);
	memcpy(layer->state, state, length);
	layer->state[length] = '\0';
	layer->kind = kind;
	layer->nkeys = 0;
	layer->keys = NULL;
	if (names != NIL)
		layer->keys = MemoryContextAlloc(presence_context,
										 sizeof(PresenceKey *) * list_length(names));
	foreach(lc, names)
		layer->keys[layer->nkeys++] = KeyHold(member, lfirst(lc));
}

void
LayerClear(Layer *layer)
{
	int i;

	if (layer->state == NULL)
		return;
	for (i = 0; i < layer->nkeys; i++)
		KeyRelease(layer->keys[i]);
	if (layer->keys != NULL)
		pfree(layer->keys);
	pfree(layer->state);
	memset(layer, 0, sizeof(Layer));
}

/* ---- tracks ---- */

Track *
TrackCreate(Member *member)
{
	Track *track = MemoryContextAllocZero(presence_context, sizeof(Track));

	track->member = member;
	dlist_push_tail(&member->tracks, &track->member_node);
	member->ntracks++;
	return track;
}

static void
ForgetAway(Track *track)
{
	dlist_delete(&track->away_node);
	IdentityRelease(track->identity);
	track->identity = NULL;
	if (track->token_claims != NULL)
		pfree(track->token_claims);
	track->token_claims = NULL;
	pfree(track->session);
	track->session = NULL;
}

void
TrackEnd(Track *track)
{
	Member *member = track->member;
	Room *room = member->room;

	if (track->viewer != NULL)
		track->viewer->track = NULL;
	else if (track->identity != NULL)
		ForgetAway(track);
	TimerSet(&track->timer, 0);
	LayerClear(&track->base);
	LayerClear(&track->passing);
	dlist_delete(&track->member_node);
	member->ntracks--;
	pfree(track);
	MemberRefresh(member);
	RoomRelease(room);
}

void
TrackAway(Track *track)
{
	Connection *connection = track->viewer->subscription->connection;
	int grace = track->member->room->options->grace;

	if (grace == 0)
	{
		TrackEnd(track);
		return;
	}
	track->viewer->track = NULL;
	track->viewer = NULL;
	track->away_ends = TimestampTzPlusMilliseconds(feed_now, grace);
	if (connection->expires != 0)
		track->away_ends = Min(track->away_ends,
							   time_t_to_timestamptz((pg_time_t) connection->expires));

	/* Until then its rights may be taken away. */
	track->identity = connection->identity;
	track->identity->refcount++;
	track->issued = connection->issued;
	if (connection->token_claims != NULL)
		track->token_claims = MemoryContextStrdup(presence_context, connection->token_claims);
	track->session = MemoryContextStrdup(presence_context, RevocationsSession(connection));
	dlist_push_tail(&presence_away, &track->away_node);
	TrackSetTimer(track);
}

void
TrackAttach(Track *track, Viewer *viewer)
{
	if (track->identity != NULL)
		ForgetAway(track);
	track->viewer = viewer;
	viewer->track = track;
}

/* ---- viewers ---- */

Viewer *
ViewerCreate(Subscription *s, Room *room)
{
	Viewer *viewer = MemoryContextAllocZero(presence_context, sizeof(Viewer));

	viewer->subscription = s;
	viewer->room = room;
	viewer->state = VIEWER_NEW;
	dlist_push_tail(&room->viewers, &viewer->room_node);
	dlist_push_tail(&presence_waiting, &viewer->waiting_node);
	s->presence = viewer;
	return viewer;
}

void
ViewerRestart(Viewer *viewer)
{
	if (viewer->state == VIEWER_CURRENT)
		dlist_push_tail(&presence_waiting, &viewer->waiting_node);
	viewer->state = VIEWER_NEW;
}

void
ViewerFree(Viewer *viewer)
{
	Room *room = viewer->room;

	if (viewer->state != VIEWER_CURRENT)
		dlist_delete(&viewer->waiting_node);
	dlist_delete(&viewer->room_node);
	viewer->subscription->presence = NULL;
	if (viewer->track != NULL)
	{
		/* Which lets go of the room, if nobody else needs it. */
		TrackEnd(viewer->track);
		pfree(viewer);
		return;
	}
	pfree(viewer);
	RoomRelease(room);
}
