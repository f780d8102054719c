/*-------------------------------------------------------------------------
 *
 * presence_internal.h
 *		Who is in a channel: rooms, members, tracks, keys, viewers.
 *
 * A *room* is what an instance of a channel with presence has; it is found by
 * the channel's name and parameters, and outlives the instance while somebody
 * is away.  A *member* is a user in it, a *track* what one subscription has said
 * with `track`, a *viewer* a subscription that is told.  A track has two
 * *layers*: what was tracked for good, and over it what was tracked with
 * "expires_in" and goes by itself.  When its connection is lost, a track is
 * *away*: nobody is told until the grace period is over, or takes it over if
 * the user comes back.  A *key* is held by one member, through one or more of
 * his layers.
 *
 * Each member keeps the text that viewers were told of it (`told`).  New viewers
 * get these texts, and changes since then come to all with the next diff, so
 * that there is neither a gap nor a repeat between list and diffs.
 *
 * Nobody's slowness costs memory: a connection gets a window of presence and
 * is asked (LINK_MARK) whether it has gone out.  A viewer who is beyond it gets
 * no diffs, and the whole list when there is room again.
 *
 * Process: feed worker.  Memory: presence_context, freed piecewise.  No locks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_PRESENCE_INTERNAL_H
#define CHANGEFEED_PRESENCE_INTERNAL_H

#include "presence.h"

#include "lib/pairingheap.h"

#define PRESENCE_KEYS_MAX	16	/* of one `track` */
#define PRESENCE_KEY_MAX	256 /* bytes */
#define PRESENCE_TRACKS_MAX 100 /* of one member */

/* A message with a list of members is cut at this size. */
#define PRESENCE_PAGE (32 * 1024)

/* In a hash table by 64 bits; those with the same hash are chained. */
typedef struct PresenceLinked
{
	uint64 hash;
	struct PresenceLinked *next;
} PresenceLinked;

typedef struct PresenceTimer
{
	pairingheap_node node;
	TimestampTz at; /* 0: not set */
	bool is_room;	/* else of a track */
} PresenceTimer;

typedef struct PresenceKind
{
	char *name;
	int nmembers;
	int limit; /* -1: none */
} PresenceKind;

typedef struct Room
{
	PresenceLinked linked; /* first */
	char *key;
	int key_length;
	uint64 id;
	uint64 channel; /* serial of the definition that the options are from */
	PresenceOptions *options;
	dlist_head viewers; /* Viewer.room_node */
	dlist_head members; /* Member.room_node, by serial */
	dlist_head dirty;	/* Member.dirty_node */
	int nmembers;		/* those with tracks */
	int nkinds;
	PresenceKind kinds[PRESENCE_KINDS_MAX];
	PresenceTimer timer; /* the next diff */
	char *told;			 /* count_only: what was */
} Room;

typedef struct Member
{
	PresenceLinked linked; /* first */
	Room *room;
	char *user;
	uint64 serial; /* order of joining */
	TimestampTz since;
	dlist_node room_node;
	dlist_head tracks; /* Track.member_node */
	int ntracks;
	bool counted; /* in room->nmembers */
	bool dirty;
	dlist_node dirty_node;
	uint32 kinds; /* of room->kinds, by bit */
	char *told;	  /* states, or NULL: nobody knows of it */
	char *told_meta;
} Member;

typedef struct PresenceKey
{
	PresenceLinked linked; /* first */
	Room *room;
	char *name;
	Member *holder;
	int nholds; /* layers */
	uint64 seen;
} PresenceKey;

typedef struct Layer
{
	char *state; /* JSON; NULL: not there */
	int kind;	 /* of room->kinds, -1: none */
	int nkeys;
	PresenceKey **keys;
} Layer;

typedef struct Track
{
	dlist_node member_node;
	Member *member;
	struct Viewer *viewer; /* NULL: away */
	Layer base;
	Layer passing;
	TimestampTz passing_ends;
	PresenceTimer timer;

	/* away */
	dlist_node away_node;
	TimestampTz away_ends;
	Identity *identity; /* a reference */
	int64 issued;
	char *token_claims;
	char *session;
} Track;

typedef enum ViewerState
{
	VIEWER_NEW,	 /* gets the list, from its beginning */
	VIEWER_LIST, /* has got the list up to `cursor` */
	VIEWER_CURRENT
} ViewerState;

typedef struct Viewer
{
	Subscription *subscription;
	Room *room;
	Track *track; /* or NULL */
	dlist_node room_node;
	ViewerState state;
	dlist_node waiting_node; /* unless current */
	uint64 cursor;
	uint64 until;
} Viewer;

/* ---- presence.c ---- */

/* The subscription has been announced: what the client said before that. */
extern void PresenceHandleEarly(Subscription *subscription);

/* ---- presence_room.c ---- */

extern MemoryContext presence_context;
extern dlist_head presence_away; /* Track.away_node */

/* The room of a channel's instance; NULL if it has none, or there is none yet. */
extern Room *RoomFind(Channel *channel, char *const *params);
extern Room *RoomIntern(Channel *channel, char *const *params);
extern void RoomRelease(Room *room); /* frees it if nobody needs it */
extern void RoomTouch(Room *room);	 /* there is something to tell */

extern Member *MemberFind(Room *room, const char *user);
extern Member *MemberIntern(Room *room, const char *user);
extern void MemberFree(Member *member);

/* Its tracks have changed. */
extern void MemberRefresh(Member *member);

/* The number of a kind, or -1: there are too many. */
extern int KindIntern(Room *room, const char *name);

extern PresenceKey *KeyFind(Room *room, const char *name);

/* Takes the keys, all of which are free or the member's. */
extern void
LayerMake(Layer *layer, Member *member, const char *state, int length, int kind, List *keys);
extern void LayerClear(Layer *layer);

extern Track *TrackCreate(Member *member);
extern void TrackEnd(Track *track);
extern void TrackAway(Track *track);
extern void TrackAttach(Track *track, Viewer *viewer);
extern void TrackSetTimer(Track *track);

/* The next timer, whether it is due or not; NULL: there is none. */
extern PresenceTimer *TimerFirst(void);
extern void TimerSet(PresenceTimer *timer, TimestampTz at);
extern void TrackTimer(PresenceTimer *timer);

extern Viewer *ViewerCreate(Subscription *subscription, Room *room);
extern void ViewerFree(Viewer *viewer);
extern void ViewerRestart(Viewer *viewer);
extern dlist_head presence_waiting; /* Viewer.waiting_node */

/* ---- presence_send.c ---- */

/* `[<state>,...]` of now, and `{"kinds":[...],"holds":[...]}` or "". */
extern void MemberStates(Member *member, StringInfo states);
extern void MemberMeta(Member *member, StringInfo meta);
extern List *MemberHolds(Member *member);		   /* of PresenceKey */
extern void RoomCount(Room *room, StringInfo out); /* "count":..,"kinds":{..} */

#endif /* CHANGEFEED_PRESENCE_INTERNAL_H */
