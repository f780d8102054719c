/*-------------------------------------------------------------------------
 *
 * deliver.h
 *		What the parts of delivery share: deliver.c (who is concerned),
 *		fragment.c (bytes), behind.c (connections that are behind).
 *
 * Process: feed worker.  Memory: a Delivery and its fragments live in the turn.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_DELIVER_H
#define CHANGEFEED_DELIVER_H

#include "gateways.h"
#include "verdicts.h"

/* One change as JSON, without the name of the channel. */
typedef struct Operation
{
	MapEntry *entry; /* NULL: of FragmentAddText */
	View *view;		 /* any with these columns */
	SourceAction action;
	bool complete;	/* whole row, even for merge */
	bool in_before; /* the receivers had the row */
	bool failed;	/* could not be written */

	/* What view->casts gave, before and after; NULL without them. */
	const char *const *old_texts;
	const char *const *new_texts;
	View *before;		 /* NULL: `view`; its columns are what receivers have */
	StringInfoData json; /* what follows the name; no data: nothing to be sent */
} Operation;

/* Connections of one gateway. */
typedef struct AddresseesPart
{
	int count;
	int room;
	int place; /* on the link: which audience of the transaction, or -1 */
	uint32 *numbers;
} AddresseesPart;

/* Whom fragments with one name are for. */
typedef struct Addressees
{
	uint64 hash;								 /* of those who were added, in their order */
	int uses;									 /* fragments */
	bool taken;									 /* those who are out are not there any more */
	AddresseesPart parts[FLEXIBLE_ARRAY_MEMBER]; /* by gateway */
} Addressees;

/* An operation under a name, and who gets it. */
typedef struct Fragment
{
	Operation *operation;
	Spelling *name;
	struct Fragment *next;		/* of the entry at hand, with the same name */
	struct Fragment *next_open; /* of the entry at hand */
	int length;					/* of its text */
	Addressees *addressees;		/* shared from the entry's end on */
} Fragment;

/* Why a subscription gets nothing of the transaction, the worst last. */
typedef enum OutReason
{
	OUT_UNREADABLE, /* a value is not in the WAL */
	OUT_STALE,		/* its conditions or types do not fit the table any more */
	OUT_FAILED,		/* its conditions cannot be evaluated: it ends */
	OUT_AHEAD,		/* labels are those of a later transaction, so nothing above is certain */
	OUT_TOO_MANY /* too many rows would have to be judged by query workers, or be held for too many */
} OutReason;

typedef struct OutSubscription
{
	Subscription *subscription; /* hash key */
	OutReason reason;
	char *sqlstate; /* OUT_FAILED */
	char *message;
} OutSubscription;

/* That an entry is to be sent, to all receivers or to one subscription. */
typedef struct Decision
{
	MapEntry *entry;
	struct Receivers *receivers; /* NULL: */
	Subscription *one;
	bool before; /* they saw the row, and see it now */
	bool after;
} Decision;

typedef struct Delivery
{
	LogTransaction *transaction;
	TransactionMap *map;
	List *removes; /* of Fragment */
	List *others;
	uint64 visit;					   /* number of the entry at hand */
	List *current;					   /* its operations */
	Fragment *open;					   /* its fragments */
	struct EventState *current_events; /* its events */
	List *texts;					   /* those of FragmentAddText */
	List *out;						   /* of OutSubscription */
	HTAB *out_table;				   /* the same */

	/* Who takes part: the live ones, a group, or one subscription. */
	uint64 group;  /* 0: live connections */
	List *members; /* of the group: Connection */
	Subscription *only;
	List *paced; /* Subscription, all with the same name */

	uint64 run;			/* number of this run, for those taken out */
	bool messages_only; /* no changes of rows */
	List *messages;		/* of TransactionMessage */
	bool asking;		/* missing verdicts are asked for; nothing is sent yet */
	bool missing;		/* `only` cannot be sent its changes yet */
	List *waiting;		/* connections that lack a verdict */
	uint64 asked;		/* verdicts, by all before */
	bool too_many;		/* of those asked for */
	int ndecisions;
	int maxdecisions;
	Decision *decisions;
	int undecided; /* the first entry that they are not about */
	Size bytes;	   /* of fragments, per receiver */
	HTAB *shared;  /* addressees.c: by name and hash, of names with several */
	Size held;	   /* by fragments and messages, beyond one receiver of each */
	bool full;	   /* no more than that */
} Delivery;

/* A message of the transaction, and who gets it. */
typedef struct TransactionMessage
{
	MessagePlace place;
	Channel *channel;
	char *const *params;
	const char *event;
	const char *payload;
	Size payload_length;
	List *receivers; /* of Subscription */
	struct MessageGroup *groups;
	int ngroups;
} TransactionMessage;

/* addressees.c: one fragment's. */
extern Addressees *AddresseesNew(void);

/* `whom` says whose the numbers are, for as long as they are the same. */
extern void
AddresseesAdd(Addressees *a, const void *whom, int gateway, const uint32 *numbers, int n);

/* The same addressees, of another fragment of the run if there is one: nobody is added any more. */
extern Addressees *AddresseesShare(Delivery *d, Spelling *name, Addressees *a);

/* So much more is held, which may be too much. */
extern void AddresseesHold(Delivery *d, Size bytes);

/* message_deliver.c */
extern int MessagePlaceCompare(const MessagePlace *a, const MessagePlace *b);
extern TransactionMessage *
MessageAdd(Delivery *d, const MessagePlace *place, Channel *channel, char *const *params,
		   const char *event, const char *payload, Size payload_length);
extern void MessageAddReceiver(Delivery *d, TransactionMessage *message, Subscription *s);

/* Those of changefeed.publish. */
extern void MessagesCollect(Delivery *d);

/* None of this transaction for those that are out. */
extern void MessagesTake(Delivery *d);

/* In their order; false: nobody gets any. */
extern bool MessagesPrepare(Delivery *d);
extern bool MessagesForGateway(Delivery *d, Gateway *gateway);
extern void MessagesSend(Delivery *d, Gateway *gateway, const char *committed_at);

/*
 * event_deliver.c: the events of a changed row, for a subscription that saw the
 * row before and sees it now, or not.
 */
extern void EventsConsider(Delivery *d, MapEntry *entry, Subscription *s, View *view, bool saw_old,
						   bool sees_new);

/* deliver.c: does the subscription get this transaction in this run? */
extern bool DeliverTakesPart(Delivery *d, Subscription *s);

/*
 * decide.c: who gets which entry.  All verdicts that a connection lacks are asked
 * for at once, and those that lack any are taken out: they are behind now.  What was
 * decided is kept, so that nothing is evaluated twice, but not without limit.
 */
extern void DecideAll(Delivery *d);

/* decide.c: the same for one of those that were not kept, and DeliverSend for them. */
extern void DecideEntry(Delivery *d, MapEntry *entry);

/* deliver.c: what was decided becomes part of fragments. */
extern void DeliverSend(Delivery *d, const Decision *decision);

/*
 * decide.c: for all of the receivers, or for the one if that is not NULL; the
 * callback must not change who is live.
 */
typedef void (*DeliverCallback)(Delivery *d, MapEntry *entry, Subscription *s, const void *arg);
extern void DeliverForEach(Delivery *d, MapEntry *entry, const struct Receivers *receivers,
						   Subscription *one, DeliverCallback callback, const void *arg);

/* decide.c: nothing of the transaction for the subscription; a worse reason counts. */
extern OutSubscription *DeliverOut(Delivery *d, Subscription *s, OutReason reason);

/* deliver.c: a number that no run had, for AudienceMatches. */
extern uint64 DeliverNewRun(void);

/*
 * deliver.c: sends a step's transaction, as frames of their own, to those of the
 * subscriptions (all with the same name) of which every verdict is there.  These
 * leave the step.
 */
extern void DeliverPaced(List *subscriptions, LogTransaction *transaction);

/* behind.c: so much was sent to it that is not dropped; it may have to drain. */
extern void DeliverCount(Connection *connection, Size bytes);

/* deliver.c: a transaction for those who take part. */
extern void DeliverRun(Delivery *d, uint8 flags);

/*
 * deliver.c: the subscription starts again if what the transaction did to one
 * of its tables is not known.
 */
extern bool DeliverMapFailed(Subscription *s, TransactionMap *map);

/*
 * fragment.c: has the new image all columns of the view?  A row that was written
 * before the ALTER TABLE of its own transaction has not.
 */
extern bool FragmentRowFits(MapEntry *entry, TransactionMap *map, View *view);

/* fragment.c: is every value that the view sends known in the new image? */
extern bool FragmentRowIsKnown(MapEntry *entry, TransactionMap *map, View *view);

/*
 * The operation on the entry for one subscription, or for all live receivers; it
 * is encoded when it is the first one.  `complete`: the whole row, even for a
 * merge.  False: it cannot be written.
 */
extern bool FragmentAdd(Delivery *d, MapEntry *entry, Subscription *s, struct Receivers *receivers,
						SourceAction action, bool in_before, bool complete);

/* The entry at hand is done: nobody else gets its fragments. */
extern void FragmentsClose(Delivery *d);

/* One more receiver for operations that are there as text already. */
extern void FragmentAddText(Delivery *d, Subscription *s, const char *json, int length);

/* No operation and no message of this transaction for the subscriptions: all that are out. */
extern void FragmentsTake(Delivery *d, const List *subscriptions);

/* Hands the fragments to the gateways. */
extern void FragmentsSend(Delivery *d, uint8 flags);

#endif /* CHANGEFEED_DELIVER_H */
