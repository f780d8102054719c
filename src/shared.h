/*-------------------------------------------------------------------------
 *
 * shared.h
 *		Shared memory: which databases have a feed, who runs for them, whom to
 *		wake, and how far each has come.
 *
 * A fixed array of DatabaseFeed.  The launcher alone assigns and frees
 * entries and starts and stops workers; everybody else writes only the fields
 * marked for it.  Nothing process-local (pointer, descriptor) is stored here.
 *
 * Locks: SharedFeeds->lock (an LWLock of our own tranche) guards assignment
 * and state; atomics and the process numbers are read without it.  A stale
 * process number is harmless: at worst somebody's latch is set once too much.
 *
 * Process: all.  The commit callback of every backend reads this, so looking
 * up one's database has to be cheap (SharedFeedOfMyDatabase caches).
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_SHARED_H
#define CHANGEFEED_SHARED_H

#include "pg_changefeed.h"
#include "feed_request.h"

#include "access/xlogdefs.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/dsm.h"
#include "storage/lwlock.h"

#define MAX_DATABASES 64

/* Tables that policies read whose rows the decoder sends; see wanted. */
#define MAX_WANTED 1024

typedef enum FeedState
{
	FEED_UNUSED = 0, /* entry is free */
	FEED_WANTED,	 /* the extension is there; workers are to run */
	FEED_STOPPING	 /* the extension was dropped; workers are to
								 * end, the slot is to be dropped */
} FeedState;

/* What somebody asks of the launcher; the first two read as booleans. */
typedef enum FeedRequest
{
	REQUEST_STOP = 0,  /* the extension is gone */
	REQUEST_START = 1, /* the extension is there */
	REQUEST_RESTART,   /* dropped and created again: begin anew */
	REQUEST_LOOK,	   /* the database is new or was altered: scan it */
	REQUEST_AGAIN	   /* the extension was updated: start the pair again */
} FeedRequest;

typedef struct DatabaseFeed
{
	/* Written by launcher under the lock; read by all. */
	Oid database;
	FeedState state;
	uint32 generation;		  /* of the pair decoder + feed worker; changes
								 * with every start */
	dsm_handle queue_segment; /* of this generation: one shm_mq, see
								 * SharedQueueAttach */

	/*
	 * The slot, which carries the epoch in its name.  Written by the decoder
	 * (under the lock) before it queues its first record of a generation.
	 */
	NameData slot_name;
	pg_atomic_uint64 epoch;		/* 0: no slot yet */
	pg_atomic_uint64 start_lsn; /* decoding began here in this generation */

	/* The pair ends by intent, to be started again at once (0 or 1). */
	pg_atomic_uint32 restart_wanted;

	/* Written by the feed worker: nobody is let in (0 or 1). */
	pg_atomic_uint32 paused;

	/*
	 * changefeed.history_wal_size (MB) as it is set in the database; 0: not
	 * known.  Written by the decoder, for the launcher.
	 */
	pg_atomic_uint32 wal_limit;

	/*
	 * What each commit reads has a cache line of its own: the counters and
	 * positions around it are written all the time.
	 */
	char begin_of_line[PG_CACHE_LINE_SIZE];

	/*
	 * Process numbers for SetLatch, PG_UINT32_MAX: none.  Each set by its own
	 * process.
	 */
	pg_atomic_uint32 decoder_proc;
	pg_atomic_uint32 feed_proc;

	/*
	 * The decoder sleeps until a commit wakes it (0 or 1); otherwise it looks by
	 * itself soon.  Set by the decoder, reset by it or by who wakes it.
	 */
	pg_atomic_uint32 decoder_sleeps;

	/*
	 * The feed worker waits for this transaction (an xid, 0: for none) to become
	 * visible.
	 */
	pg_atomic_uint32 visibility_wanted;

	/*
	 * WAL has to be flushed up to here although nobody waits for it
	 * (synchronous_commit = off, snapshots): raised by backends and feed
	 * worker, obeyed by the decoder.
	 */
	pg_atomic_uint64 flush_wanted;

	char end_of_line[PG_CACHE_LINE_SIZE];

	/*
	 * Written by the decoder: everything that ends at or before this LSN has
	 * been decoded, and what came of it is in the queue.
	 */
	pg_atomic_uint64 decoded_lsn;

	/*
	 * Messages that the decoder has begun to put into the queue.  Written by it,
	 * before the message.
	 */
	pg_atomic_uint64 queue_begun;

	/*
	 * The decoder sets the feed worker's latch when decoded_lsn reaches this
	 * (0: nobody waits).  Written by the feed worker, reset by the decoder.
	 */
	pg_atomic_uint64 decoded_wanted;

	/*
	 * Start of the commit record of the oldest transaction in the log: the
	 * decoder confirms the slot up to here.  Written by the feed worker.
	 * InvalidXLogRecPtr: confirm nothing yet.
	 */
	pg_atomic_uint64 confirm_lsn;

	/*
	 * The log's base: the name of the last transaction before confirm_lsn.
	 * Written by the feed worker, before confirm_lsn, and read by the next one,
	 * which cannot get it from the WAL that the slot still has.
	 */
	uint64 base_epoch; /* 0: not known */
	XLogRecPtr base_lsn;
	uint64 base_xid;
	uint64 base_time;

	/*
	 * A decoder that sleeps because its database is quiet is woken when the
	 * cluster's WAL gets here: its slot holds that WAL, too.
	 */
	pg_atomic_uint64 wake_at;

	/*
	 * Raised when roles or memberships were changed by a command in any
	 * database of the cluster; the feed worker compares it with its own copy.
	 */
	pg_atomic_uint64 role_changes;

	/*
	 * Tables that are no sources, but whose changes the feed worker wants to
	 * see because policies read them.  Written by the feed worker, under the
	 * lock; the decoder takes a copy, under the lock, when it finds the
	 * version changed at the beginning of a transaction.
	 */
	pg_atomic_uint32 wanted_version;
	int nwanted;
	Oid wanted[MAX_WANTED];

	/* Counters for the views; each written by one process. */
	pg_atomic_uint64 decoder_transactions;
	pg_atomic_uint64 decoder_changes;
	pg_atomic_uint64 decoder_bytes;	 /* put into the queue */
	pg_atomic_uint64 feed_published; /* LSN of the last published commit */
	pg_atomic_uint64 feed_connections;
	pg_atomic_uint64 feed_subscriptions;
	pg_atomic_uint64 feed_frames; /* transactions sent to the gateways */
	pg_atomic_uint64 feed_resyncs;
	pg_atomic_uint64 feed_denials;
	pg_atomic_uint64 feed_evaluations; /* of clients' conditions on a row */
	pg_atomic_uint64 feed_log_bytes;
	pg_atomic_uint64 feed_snapshot_bytes; /* of files: see subscribe_pages.c */
	pg_atomic_uint64 feed_messages;		  /* published, by clients or in WAL */
	pg_atomic_uint64 feed_event_errors;	  /* events that could not be made */
	pg_atomic_uint64 decoder_forged;	  /* messages in WAL that are not ours */
	pg_atomic_uint32 feed_port;			  /* bound port, 0: not listening */
	pg_atomic_uint32 feed_gateway_pid;	  /* of the first gateway */
	pg_atomic_uint64 feed_gateway_starts;
	pg_atomic_uint64 feed_starts; /* of the pair; generation counts more */

	/* Slots that were lost; each by decoder or launcher, never both at a time. */
	pg_atomic_uint64 slots_given_up;
	pg_atomic_uint64 slots_invalidated;

	/* Questions of backends; guarded by request_lock, see feed_request.h. */
	RequestBoard requests;
} DatabaseFeed;

typedef struct SharedFeeds
{
	LWLock *lock;
	LWLock *request_lock;			/* of all `requests` */
	pg_atomic_uint32 launcher_proc; /* PG_UINT32_MAX: none */

	/*
	 * Raised by the launcher whenever it has assigned or freed an entry, so
	 * that every backend may remember what it looked up, absence included.
	 */
	pg_atomic_uint32 assignments;

	/* The smallest wake_at of all feeds; PG_UINT64_MAX: nobody has to be woken. */
	pg_atomic_uint64 wake_at;

	/*
	 * A transaction that changed roles was prepared: from then on COMMIT
	 * PREPARED counts as a change of roles, since it does not say.  0 or 1.
	 */
	pg_atomic_uint32 roles_prepared;

	/* Broadcast by the launcher when an entry changes its state. */
	ConditionVariable state_changed;

	/*
	 * Somebody committed CREATE or DROP EXTENSION, or a scan has found
	 * something: the launcher takes the requests.  At most one a database.
	 * Guarded by lock.
	 */
	uint64 request_count; /* of all times; see SharedReportExtension */
	bool rescan;		  /* look at all databases again */

	/*
	 * Databases that are being dropped: whatever their workers say, which may
	 * just be starting, they get no feed.  Guarded by lock.
	 */
	int ndropping;
	Oid dropping[MAX_DATABASES];
	int nrequests; /* databases whose extension came or went */
	struct
	{
		Oid database;
		FeedRequest what;
		uint64 serial; /* request_count when it was last changed */
	} requests[MAX_DATABASES];
	DatabaseFeed feeds[MAX_DATABASES];
} SharedFeeds;

extern SharedFeeds *shared_feeds; /* NULL when not preloaded */

/* Installs the shmem hooks; only from _PG_init while preloading. */
extern void SharedMemoryRequest(void);

/* The entry of the database that this process is connected to, or NULL. */
extern DatabaseFeed *SharedFeedOfMyDatabase(void);

/*
 * The entry that this process, a worker that the launcher started, is for.
 * A worker of a generation that is over exits quietly in here; call it, and
 * SharedRegisterProcess, before connecting to feed->database.
 */
extern DatabaseFeed *SharedFeedOfWorker(Datum main_arg);

/*
 * Tells the launcher, at commit of a transaction, that the extension came to
 * or left `database`.  Errors are impossible: called after commit.
 */
extern void SharedRequest(Oid database, FeedRequest what);

/*
 * The feed of the database ends, since that is dropped, and no other one begins;
 * false: too many are being dropped.  The command ends with SharedEndDrop; if it
 * has failed the feed begins anew.
 */
extern bool SharedBeginDrop(Oid database);
extern void SharedEndDrop(Oid database, bool failed);

/*
 * hooks.c: the same at the commit of the current transaction, for its own
 * database; REQUEST_START, REQUEST_STOP or REQUEST_RESTART.
 */
extern void HooksFeedRequest(FeedRequest what);

/*
 * Looks, in a transaction of its own, whether my database has the extension and
 * is not paused without a slot, tells the launcher, and returns it.  Outside any transaction only.  A feed
 * worker that gets false exits with 0: the launcher then ends the decoder,
 * drops the slot and frees the entry.
 */
extern bool SharedReportExtension(void);

/* For the launcher, which holds the lock exclusively: see shared.c. */
extern void SharedAssign(DatabaseFeed *feed, Oid database);
extern void SharedFree(DatabaseFeed *feed);
extern void SharedNewGeneration(DatabaseFeed *feed, dsm_handle queue_segment);

/* What the launcher knows of a database, requests not yet looked at included. */
extern FeedState SharedStateOfDatabase(Oid database);

/* Sets the latch of the process with that number, if there is one. */
extern void SharedWake(pg_atomic_uint32 *procno);

/* Something was committed: wakes the decoder if it sleeps. */
extern void SharedWakeDecoder(DatabaseFeed *feed);

/* The transaction that the feed worker waits for is visible. */
extern void SharedWakeFeedWorker(DatabaseFeed *feed);

/*
 * The eventfd by which these two wake the worker, which has to wait for it and
 * to take it; -1: it is the worker's latch.
 */
typedef enum SharedWorker
{
	SHARED_DECODER,
	SHARED_FEED_WORKER
} SharedWorker;
#define SHARED_WORKERS 2
extern int SharedEvent(DatabaseFeed *feed, SharedWorker worker);
extern void SharedEventTaken(int event);

/*
 * The decoder is about to sleep: a commit in any database shall wake it once
 * the WAL has come to `lsn`.  SharedWakeSleepers is called at each commit.
 */
extern void SharedSleepUntil(DatabaseFeed *feed, XLogRecPtr lsn);
extern void SharedWakeSleepers(XLogRecPtr lsn);

/*
 * Registers this process in `*procno`, and its removal at exit.  With a field
 * of an entry: exits quietly, as SharedFeedOfWorker does, when the generation
 * of this worker is over.
 */
extern void SharedRegisterProcess(pg_atomic_uint32 *procno);

/* Raises an LSN that only grows. */
extern void SharedAdvance(pg_atomic_uint64 *lsn, XLogRecPtr to);

/*
 * The LSN up to which WAL has been inserted, normalised: when it lies just
 * behind a page header it is moved back to the page's start, so that it can be
 * compared with ends of records and given to XLogFlush.
 */
extern XLogRecPtr SharedInsertLsn(void);

/*
 * The queue decoder -> feed worker of this generation.  The launcher makes
 * the segment; each side attaches once as sender or receiver.  The returned
 * handle lives as long as the process.
 */
struct shm_mq_handle;
extern dsm_segment *SharedQueueCreate(Size size);
extern struct shm_mq_handle *SharedQueueAttach(DatabaseFeed *feed, bool sender);

#endif /* CHANGEFEED_SHARED_H */
