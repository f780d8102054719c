/*-------------------------------------------------------------------------
 *
 * subscribe_load.c
 *		What a subscription has as long as it is not ready: its place in the
 *		lists of those that have to be looked at, and its answer.
 *
 * After a lost gateway thousands of clients come back at the same time, many of
 * them with the same identity to the same channel.  Whoever asks what somebody
 * else has asked already, with whose job no worker has begun, waits for that
 * job: it is run behind both questions, so it answers both.  A job that has
 * begun is not joined, as it may not know what was committed before the second
 * question.
 *
 * In the lists are only those with which something can be done, so that a turn
 * does not look at all who wait for query workers and clients.
 *
 * Process: feed worker.  Locks: none.  Memory: contexts of its own, which are
 * given back when everybody is ready.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "subscribe.h"

#include <unistd.h>

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

/* Bytes of a block of loads. */
#define LOAD_BLOCK (64 * 1024)

/* The answer for which the last job of that hash was submitted. */
typedef struct Question
{
	uint64 hash;
	SubscribeAnswer *answer;
} Question;

dlist_head all_subscriptions_working = DLIST_STATIC_INIT(all_subscriptions_working);
dlist_head all_subscriptions_catching_up = DLIST_STATIC_INIT(all_subscriptions_catching_up);

static MemoryContext load_context;
static int nloads;
uint64 subscriptions_loaded;

/* Everything of answers; NULL: there are none. */
static MemoryContext answer_context;
static HTAB *questions;
static int nanswers;

/* ---- loads ---- */

void
SubscribeLoadBegin(Subscription *s)
{
	if (s->load != NULL)
		return;
	if (load_context == NULL)
		load_context = SlabContextCreate(TopMemoryContext, "changefeed loading subscriptions",
										 LOAD_BLOCK, sizeof(SubscriptionLoad));
	s->load = MemoryContextAllocZero(load_context, sizeof(SubscriptionLoad));
	s->load->subscription = s;
	nloads++;
}

static void
TakeOut(SubscriptionLoad *load)
{
	if (load->listed)
		dlist_delete(&load->node);
	load->listed = false;
}

void
SubscribeLoadEnd(Subscription *s)
{
	SubscriptionLoad *load = s->load;

	if (load == NULL)
		return;
	SubscribeAnswerLeave(s);
	SubscribePagesEnd(s);
	SubscribePagesLoadEnd(s);
	TakeOut(load);
	if (load->request_id != NULL)
		pfree(load->request_id);
	pfree(load);
	s->load = NULL;
	nloads--;
	subscriptions_loaded++;
}

void
SubscriptionHolds(Subscription *s, bool holds)
{
	if (s->load == NULL || s->load->holds == holds)
		return;
	s->load->holds = holds;
	s->connection->held += holds ? 1 : -1;
}

int
SubscriptionsNotReady(void)
{
	return nloads;
}

void
SubscribePlace(Subscription *s)
{
	SubscriptionLoad *load = s->load;

	if (load == NULL)
		return;
	TakeOut(load);
	if (s->state == SUB_CATCHUP)
		dlist_push_tail(&all_subscriptions_catching_up, &load->node);
	else if (s->state == SUB_QUERYING && !load->asked && !load->parked)
		dlist_push_tail(&all_subscriptions_working, &load->node);
	else
		return;
	load->listed = true;
}

void
SubscriptionsCatchingUp(void (*callback)(Connection *connection))
{
	dlist_iter iter;

	dlist_foreach(iter, &all_subscriptions_catching_up)
		callback(dlist_container(SubscriptionLoad, node, iter.cur)->subscription->connection);
}

bool
SubscribeResumes(const Subscription *s)
{
	return s->load != NULL && s->load->from_position;
}

const MessagePlace *
SubscribeSkips(const Subscription *s, uint64 number)
{
	return s->load != NULL && s->load->skip_number == number ? &s->load->skip : NULL;
}

bool
SubscribeIsOwed(const Subscription *s, uint64 number)
{
	return s->load == NULL || !s->load->owes || number > s->load->owed;
}

/* ---- answers ---- */

static void
MakeAnswers(void)
{
	HASHCTL ctl;

	if (answer_context != NULL)
		return;
	answer_context = AllocSetContextCreate(TopMemoryContext, "changefeed answers",
										   ALLOCSET_DEFAULT_SIZES);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(Question);
	ctl.hcxt = answer_context;
	questions = hash_create("changefeed questions", 256, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Nobody joins it from now on. */
static void
CloseQuestion(SubscribeAnswer *answer)
{
	Question *question = hash_search(questions, &answer->hash, HASH_FIND, NULL);

	if (question != NULL && question->answer == answer)
		hash_search(questions, &answer->hash, HASH_REMOVE, NULL);
}

static void
ForgetRows(SubscribeAnswer *answer)
{
	if (answer->pages.data != NULL)
		pfree(answer->pages.data);
	memset(&answer->pages, 0, sizeof(answer->pages));
	if (answer->file != NULL)
	{
		unlink(answer->file);
		pfree(answer->file);
	}
	answer->file = NULL;
}

void
SubscribeAnswerRelease(SubscribeAnswer *answer)
{
	int i;

	if (answer->readers == 0 && answer->loading == 0)
		SubscribePagesFileGone(answer);
	if (--answer->refcount > 0)
		return;
	if (answer->job != 0)
	{
		QueryCancel(answer->job);
		CloseQuestion(answer);
	}
	if (answer->views != NULL)
	{
		for (i = 0; i < answer->nviews; i++)
			if (answer->views[i] != NULL)
				ViewRelease(answer->identity, answer->views[i]);
		pfree(answer->views);
	}
	if (answer->snapshot.xip != NULL)
		pfree(answer->snapshot.xip);
	ForgetRows(answer);
	pfree(answer);

	/* What a storm took goes back. */
	if (--nanswers == 0)
	{
		MemoryContextDelete(answer_context);
		answer_context = NULL;
		questions = NULL;
	}
}

void
SubscribeAnswerRead(Subscription *s)
{
	SubscriptionLoad *load = s->load;

	if (!load->reads)
		return;
	load->reads = false;
	if (--load->answer->readers == 0 && load->answer->job == 0)
		ForgetRows(load->answer);
}

void
SubscribeAnswerLeave(Subscription *s)
{
	SubscriptionLoad *load = s->load;
	SubscribeAnswer *answer;

	if (load == NULL)
		return;
	load->answered = false;
	load->has_snapshot = false;
	answer = load->answer;
	if (answer == NULL)
		return;
	SubscribeAnswerRead(s);
	load->answer = NULL;
	if (load->asked)
		dlist_delete(&load->answer_node);
	load->asked = false;
	SubscribeAnswerRelease(answer);
	SubscribeFetchEnd(s);
	SubscribePlace(s);
}

static Subscription *
PopWaiting(SubscribeAnswer *answer)
{
	SubscriptionLoad *load = dlist_container(SubscriptionLoad, answer_node,
											 dlist_pop_head_node(&answer->subscriptions));

	load->asked = false;
	return load->subscription;
}

static void
Done(SubscribeAnswer *answer)
{
	while (!dlist_is_empty(&answer->subscriptions))
	{
		Subscription *s = PopWaiting(answer);
		SubscriptionLoad *load = s->load;

		load->answered = true;

		/* Without rows it says only of when the answer is. */
		load->has_snapshot = !s->no_snapshot && !load->from_position;
		if (load->has_snapshot)
			HistogramAdd(&counters.snapshot_time, feed_now - load->asked_at);
		SubscribeSetViews(s, answer->views);
		SubscribePlace(s);
	}
}

static void
Failed(SubscribeAnswer *answer, WireReader *body)
{
	WireBytes sqlstate = WireGetBytes(body);
	WireBytes message = WireGetBytes(body);
	WireBytes hint = WireGetBytes(body);
	const char *state = pnstrdup(sqlstate.data, sqlstate.length);
	const char *text = pnstrdup(message.data, message.length);
	const char *help = hint.length > 0 ? pnstrdup(hint.data, hint.length) : NULL;

	while (!dlist_is_empty(&answer->subscriptions))
		SubscribeFailed(PopWaiting(answer), state, text, help);
}

static void
OnResult(void *arg, uint64 job, QueryKind kind, WireReader *body)
{
	SubscribeAnswer *answer = arg;

	if (kind != QUERY_DONE && kind != QUERY_ERROR)
	{
		SubscribeReadAnswer(answer, kind, body);
		return;
	}
	answer->job = 0;
	CloseQuestion(answer);

	/* Its subscriptions may let go of it one after the other. */
	answer->refcount++;
	if (kind == QUERY_DONE)
		Done(answer);
	else
		Failed(answer, body);
	SubscribeAnswerRelease(answer);
}

void
SubscribeAnswerAsk(Subscription *s, const StringInfoData *body)
{
	SubscriptionLoad *load = s->load;
	Instance *instance = s->instance;
	Identity *identity = s->connection->identity;
	uint64 hash = hash_bytes_extended((const unsigned char *) body->data, body->len,
									  identity->serial);
	SubscribeAnswer *answer;
	Question *question;
	bool found;

	MakeAnswers();
	question = hash_search(questions, &hash, HASH_ENTER, &found);
	answer = found ? question->answer : NULL;
	if (answer == NULL || answer->instance != instance || answer->identity != identity ||
		!QueryMayJoin(answer->job, body->data, body->len))
	{
		answer = MemoryContextAllocZero(answer_context, sizeof(SubscribeAnswer));
		answer->hash = hash;
		answer->instance = instance;
		answer->identity = identity;
		dlist_init(&answer->subscriptions);
		answer->job = QuerySubmit(QUERY_SUBSCRIBE, body->data, body->len, QUERY_LATER, OnResult,
								  answer);
		question->answer = answer;
		nanswers++;
	}
	answer->refcount++;
	answer->readers++;
	load->reads = true;
	dlist_push_tail(&answer->subscriptions, &load->answer_node);
	load->answer = answer;
	load->asked = true;
	SubscribePlace(s);
}
