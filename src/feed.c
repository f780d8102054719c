/*-------------------------------------------------------------------------
 *
 * feed.c
 *		The feed worker: its process and its loop.
 *
 * One turn: take records from the decoder's queue into the log, publish what
 * others can see by now, take results of query workers, read the gateways'
 * links, move what can be moved, write the links, sleep.  Everything has a
 * budget per turn, and nothing waits inside a turn: what cannot go on stays
 * where it is and is looked at again when something has happened.
 *
 * Each turn is a transaction of its own, for catalog look-ups; it reads
 * catalogs only, never a user's table, and takes no lock that somebody could
 * make it wait for.
 *
 * Process: feed worker.  Memory: turn_context is reset at the end of each
 * turn; what stays is allocated explicitly elsewhere.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "admin.h"
#include "console.h"
#include "feed.h"
#include "feed_request.h"
#include "gateways.h"
#include "presence.h"
#include "publish.h"
#include "verdicts.h"
#include "version.h"

#include <malloc.h>

#include "access/transam.h"
#include "access/xact.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/*
 * Bytes taken from the queue and transactions published in one turn, and after
 * how many of these the gateways get what there is.
 */
#define RECEIVE_BUDGET (1024 * 1024)
#define PUBLISH_BUDGET 500
#define PUBLISH_STEP   25

/* With more than this queued for a gateway nothing is published. */
#define LINK_LIMIT ((Size) 8 * 1024 * 1024)

/* The clock may be corrected by less (us). */
#define SET_BACK 1000000

DatabaseFeed *feed_shared;
int feed_index;
MemoryContext feed_context;
TimestampTz feed_now;
TimestampTz feed_started;
MemoryState feed_memory = MEMORY_FINE;

/* So much that is free is given back, or after so many who have become ready. */
#define GIVE_BACK ((Size) 4 * 1024 * 1024)
#define MANY	  500

static MemoryContext turn_context;
static bool shutdown_begun;

/* The channel catalog is read again when all older transactions have ended. */
static FullTransactionId catalog_horizon;

static void
Sooner(long *wait, long ms)
{
	if (ms >= 0 && (*wait < 0 || ms < *wait))
		*wait = ms;
}

/*
 * At a shutdown the clients are told, each with another time to come back.
 * Not after an error: their gateways see the link's end and do what they can.
 */
static void
AtExit(int code, Datum arg)
{
	if (!shutdown_begun)
		GatewaysShutdown("restart", 1000);
}

static void
Shutdown(void)
{
	shutdown_begun = true;
	GatewaysShutdown("shutdown", 1500);
	proc_exit(0);
}

/*
 * What many clients at once have taken for a while is free, but the C library
 * keeps it for us.  True: there is something to be given back, but not yet.
 */
static bool
GiveBackMemory(Size used)
{
#ifdef __GLIBC__
	static Size most;
	static uint64 given_back;
	static uint64 seen;
	bool quiet = SubscriptionsNotReady() == 0 && seen == subscriptions_loaded;
	bool much = most >= used + GIVE_BACK || subscriptions_loaded >= given_back + MANY;

	most = Max(most, used);
	seen = subscriptions_loaded;
	if (!much || !quiet)
		return much;
	(void) malloc_trim(0);
	most = used;
	given_back = subscriptions_loaded;
#endif
	return false;
}

/*
 * Everything that lives longer than a turn is below TopMemoryContext, but for
 * the links' buffers.  Adding up the contexts is not free, so now and then.
 */
static bool
CheckMemory(void)
{
	static bool again;
	static TimestampTz checked;
	Size limit = (Size) setting_worker_memory * 1024;
	Size used;
	MemoryState before = feed_memory;

	if (!TimestampDifferenceExceeds(checked, feed_now, 500))
		return again;
	checked = feed_now;
	used = MemoryContextMemAllocated(TopMemoryContext, true) + GatewaysPending();
	again = GiveBackMemory(used);
	feed_memory = used > limit			  ? MEMORY_OVER
				  : used > limit / 10 * 9 ? MEMORY_FULL
				  : used > limit / 10 * 8 ? MEMORY_SHORT
										  : MEMORY_FINE;
	if (feed_memory >= MEMORY_FULL && before < MEMORY_FULL)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("feed worker refuses new subscriptions: it uses %zu of %d kB of memory",
						used / 1024, setting_worker_memory),
				 errhint("Raise changefeed.worker_memory, or lower changefeed.history_size.")));
	else if (feed_memory < MEMORY_FULL && before >= MEMORY_FULL)
		ereport(
			LOG,
			(errmsg("feed worker accepts new subscriptions again: it uses %zu of %d kB of memory",
					used / 1024, setting_worker_memory)));
	return again;
}

static void
UpdateStatistics(void)
{
	pg_atomic_write_u64(&feed_shared->feed_connections, ConnectionCount());
	pg_atomic_write_u64(&feed_shared->feed_subscriptions, SubscriptionCount());
}

/*
 * Publishes what others can see.  As LogPublish, but: 0 when there is more.
 *
 * The links are written on the way: a burst of commits reaches the clients while
 * its end is still being worked on, and the gateways have work meanwhile.
 */
static long
Publish(void)
{
	for (int done = 0; done < PUBLISH_BUDGET && GatewaysPending() < LINK_LIMIT;
		 done += PUBLISH_STEP)
	{
		/* A backend's commit wakes us; the time-out is for what it cannot. */
		long retry = LogPublish(DeliverPublish, PUBLISH_STEP);

		if (retry >= 0 || !LogHasUnpublished())
			return retry;
		GatewaysFlush();
	}
	return 0;
}

/* One turn.  Returns how long to sleep: -1 for ever, 0 not at all. */
static long
Turn(XLogRecPtr start_lsn, bool *serving)
{
	long wait = -1;
	bool more;
	int i;

	more = LogReceive(RECEIVE_BUDGET);

	/* Clients come in when the log is as far as it was before we started. */
	if (!*serving && LogReceivedUpTo(start_lsn))
	{
		*serving = true;
		channels_unknown_until = LogLast();

		/*
		 * What was committed before the slot came into being is not in the
		 * stream: read the catalog again, now, and once more when the
		 * transactions that are running now have ended.
		 */
		events_catalog_stale = true;
		catalog_horizon = ReadNextFullTransactionId();
	}
	if (FullTransactionIdIsValid(catalog_horizon))
	{
		TransactionId oldest = GetOldestActiveTransactionId();

		if (TransactionIdIsValid(oldest) &&
			TransactionIdPrecedes(oldest, XidFromFullTransactionId(catalog_horizon)))
			Sooner(&wait, 1000);
		else
		{
			catalog_horizon = InvalidFullTransactionId;
			events_catalog_stale = true;
		}
	}

	Sooner(&wait, GatewaysMaintain(*serving));
	(void) EventsCheckRoles();
	EventsCheckLabels();

	if (events_catalog_stale && !EventsReloadCatalog())
		Sooner(&wait, 50);
	if (!events_catalog_stale && GatewaysPending() < LINK_LIMIT)
	{
		long retry = Publish();

		if (retry == 0)
			more = true;
		else
			Sooner(&wait, retry);
	}

	if (QueryPoolPoll())
		more = true;

	for (i = 0; i < gateway_count; i++)
		if (GatewayReceive(&gateways[i]))
			more = true;

	VerdictsAdvance();
	Sooner(&wait, RecheckAdvance());
	Sooner(&wait, SubscribeAdvance());
	ChecksAdvance();
	PublishAdvance();
	DeliverAdvance();
	Sooner(&wait, PaceAdvance());
	Sooner(&wait, PresenceAdvance());
	VerdictsAdvance();
	Sooner(&wait, CallsAdvance());
	if (QueryPoolPoll())
		more = true;
	Sooner(&wait, ProtocolAdvance());
	Sooner(&wait, FeedRequestsAdvance());
	Sooner(&wait, AdminAdvance());
	Sooner(&wait, ConsoleAdvance());
	if (CheckMemory())
		Sooner(&wait, 1000);
	Sooner(&wait, LogTrim());
	PaceTrim();

	/* Behind all that asks query workers for something, or starts subscriptions again. */
	Sooner(&wait, QueryPoolTimeout());
	if (subscribe_again || calls_again)
		more = true;
	if (dlist_is_empty(&all_connections_behind) && SubscriptionsNotReady() == 0 && !PaceIsBusy())
		MapFreeAll();
	else
		MapTrim();

	DependencyMaintain();
	LogArm();
	GatewaysFlush();
	Sooner(&wait, PresenceWait());
	UpdateStatistics();
	return more ? 0 : wait;
}

/*
 * All timers here are times of day.  When the clock is set back, each of them
 * would wait for as much longer: rather begin anew, which clients notice as a
 * reconnect.  Set forward, they are due sooner, which does no harm.
 */
static void
CheckClock(void)
{
	static TimestampTz before;
	TimestampTz now = MonotonicTime();
	TimestampTz expected = feed_now + (now - before);

	feed_now = GetCurrentTimestamp();
	if (before != 0 && feed_now < expected - SET_BACK)
	{
		ereport(
			LOG,
			(errmsg("changefeed feed worker begins anew because the clock was set back by %lld ms",
					(long long) (expected - feed_now) / 1000)));
		pg_atomic_write_u32(&feed_shared->restart_wanted, 1);
		proc_exit(1);
	}
	before = now;
}

static void
Loop(XLogRecPtr start_lsn)
{
	bool serving = false;
	bool busy = true;

	for (;;)
	{
		WaitEvent events[GATEWAYS_EVENTS];
		long wait;
		int n;

		CHECK_FOR_INTERRUPTS();
		if (ShutdownRequestPending)
			Shutdown();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			JwtForgetKeys();
			GatewaysConfigure();
		}

		/*
		 * Reset before looking: what happens from now on sets it again.
		 */
		ResetLatch(MyLatch);
		CheckClock();
		StartTransactionCommand();
		MemoryContextSwitchTo(turn_context);
		wait = Turn(start_lsn, &serving);
		MemoryContextSwitchTo(turn_context);
		CommitTransactionCommand();
		MemoryContextReset(turn_context);

		if (wait == 0)
		{
			if (!busy)
				pgstat_report_activity(STATE_RUNNING, "delivering changes");
			busy = true;
			continue;
		}
		if (busy)
		{
			pgstat_report_activity(STATE_IDLE, "waiting for changes");
			busy = false;
		}
		n = WaitEventSetWait(GatewaysWaitSet(), wait, events, lengthof(events),
							 compat_wait_event("ChangefeedFeedMain"));
		for (int i = 0; i < n; i++)
			if (events[i].user_data == feed_shared)
				SharedEventTaken(events[i].fd);
	}
}

void
ChangefeedFeedMain(Datum main_arg)
{
	XLogRecPtr start_lsn;

	feed_shared = SharedFeedOfWorker(main_arg);
	feed_index = DatumGetInt32(main_arg);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);

	/* There is no query to cancel; an error would cost all clients. */
	pqsignal(SIGINT, SIG_IGN);
	BackgroundWorkerUnblockSignals();

	SharedRegisterProcess(&feed_shared->feed_proc);
	pg_atomic_fetch_add_u64(&feed_shared->feed_starts, 1);
	BackgroundWorkerInitializeConnectionByOid(feed_shared->database, InvalidOid, 0);

	/*
	 * A process that decodes is ignored by VACUUM and reads catalogs of the
	 * past: what is evaluated here must not be.
	 */
	Assert((MyProc->statusFlags & PROC_IN_LOGICAL_DECODING) == 0);

	if (!SharedReportExtension())
		proc_exit(0);
	StartTransactionCommand();
	VersionCheck(get_database_name(feed_shared->database));
	CommitTransactionCommand();

	feed_context = AllocSetContextCreate(TopMemoryContext, "changefeed feed worker",
										 ALLOCSET_DEFAULT_SIZES);
	turn_context = AllocSetContextCreate(TopMemoryContext, "changefeed turn",
										 ALLOCSET_DEFAULT_SIZES);
	feed_now = GetCurrentTimestamp();
	feed_started = feed_now;
	EncodePinSettings();
	pgstat_report_activity(STATE_RUNNING, "starting");

	start_lsn = SharedInsertLsn();
	LogInit(feed_shared);
	RegistryInit();
	GatewaysInit();
	FeedRequestsInit();
	QueryPoolStart(feed_shared, feed_index);
	before_shmem_exit(AtExit, (Datum) 0);

	StartTransactionCommand();
	MemoryContextSwitchTo(turn_context);
	while (!EventsReloadCatalog())
	{
		CommitTransactionCommand();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 100,
						 compat_wait_event("ChangefeedFeedMain"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ShutdownRequestPending)
			proc_exit(0);
		StartTransactionCommand();
		MemoryContextSwitchTo(turn_context);
	}
	CommitTransactionCommand();

	Loop(start_lsn);
}
