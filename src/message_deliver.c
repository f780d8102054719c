/*-------------------------------------------------------------------------
 *
 * message_deliver.c
 *		Messages of a transaction: who gets them, and behind what.
 *
 * They belong to what a connection gets of the transaction, and follow the
 * frame with its changes.  A connection that goes away in between comes back
 * with the position of the last one that it got, whose suffix says which one
 * that was.  So each has a *place* within its transaction, which is the same
 * whenever and by whomever the transaction is decoded: of changefeed.publish
 * the counter in the message, of events the source, the how-manieth row of its
 * table's changes it is, and the event.  The changes themselves are at place 0.
 *
 * Process: feed worker.  Memory: the turn's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "deliver.h"
#include "message.h"

int
MessagePlaceCompare(const MessagePlace *a, const MessagePlace *b)
{
	int i;

	for (i = 0; i < MESSAGE_PLACE_PARTS; i++)
		if (a->parts[i] != b->parts[i])
			return a->parts[i] < b->parts[i] ? -1 : 1;
	return 0;
}

/* The suffix of a position: ".<counter>", ".<source>.<row>.<event>". */
static char *
Suffix(const MessagePlace *place)
{
	if (place->parts[0] == 0)
		return psprintf(".%u", place->parts[1]);
	return psprintf(".%u.%u.%u", place->parts[0], place->parts[1], place->parts[2]);
}

/* Has the client said that it got this one? */
static bool
HasGot(const Delivery *d, const Subscription *s, const MessagePlace *place)
{
	const MessagePlace *skip = SubscribeSkips(s, d->transaction->number);

	return skip != NULL && MessagePlaceCompare(place, skip) <= 0;
}

TransactionMessage *
MessageAdd(Delivery *d, const MessagePlace *place, Channel *channel, char *const *params,
		   const char *event, const char *payload, Size payload_length)
{
	TransactionMessage *m = palloc0(sizeof(TransactionMessage));

	m->place = *place;
	m->channel = channel;
	m->params = params;
	m->event = event;
	m->payload = payload;
	m->payload_length = payload_length;
	d->messages = lappend(d->messages, m);
	return m;
}

void
MessageAddReceiver(Delivery *d, TransactionMessage *m, Subscription *s)
{
	if (!SubscribeIsOwed(s, d->transaction->number) || HasGot(d, s, &m->place))
		return;
	if (m->receivers != NIL)
	{
		const Subscription *last = llast(m->receivers);

		/* It is told that it may lack some; what it gets behind its snapshot are all of them. */
		if (d->full)
		{
			(void) DeliverOut(d, s, OUT_TOO_MANY);
			return;
		}
		AddresseesHold(d, sizeof(ListCell) + sizeof(uint32) +
							  (last->name != s->name ? sizeof(MessageGroup) : 0));
	}
	m->receivers = lappend(m->receivers, s);
	d->bytes += m->payload_length + strlen(m->event) + s->name->length + 200;
}

static void
AddIfMeant(Delivery *d, TransactionMessage *m, Subscription *s)
{
	if (s->instance->channel == m->channel && InstanceMatches(s->instance, m->params) &&
		DeliverTakesPart(d, s))
		MessageAddReceiver(d, m, s);
}

void
MessagesCollect(Delivery *d)
{
	int i;
	ListCell *lc;

	for (i = 0; i < d->transaction->nmessages; i++)
	{
		LogMessage *from = &d->transaction->messages[i];
		char **params = palloc0(sizeof(char *) * CHANNEL_PARAMS_MAX);
		Channel *channel = ChannelsFind(from->channel, strlen(from->channel), params);
		MessagePlace place = {{0, from->counter, 0}};
		TransactionMessage *m;

		/* It may be gone by now. */
		if (channel == NULL)
			continue;
		m = MessageAdd(d, &place, channel, params, from->event, from->payload,
					   from->payload_length);
		if (d->only != NULL)
			AddIfMeant(d, m, d->only);
		else if (d->members != NIL)
		{
			foreach(lc, d->members)
			{
				dlist_iter iter;

				dlist_foreach(iter, &((Connection *) lfirst(lc))->subscriptions)
					AddIfMeant(d, m, dlist_container(Subscription, connection_node, iter.cur));
			}
		}
		else
		{
			List *subscriptions = MessageSubscriptions(channel, params);

			foreach(lc, subscriptions)
				if (DeliverTakesPart(d, lfirst(lc)))
					MessageAddReceiver(d, m, lfirst(lc));
			list_free(subscriptions);
		}
	}
}

void
MessagesTake(Delivery *d)
{
	ListCell *lc;
	ListCell *lc2;

	foreach(lc, d->messages)
	{
		TransactionMessage *m = lfirst(lc);
		List *kept = NIL;

		foreach(lc2, m->receivers)
		{
			Subscription *s = lfirst(lc2);

			if (hash_search(d->out_table, &s, HASH_FIND, NULL) == NULL)
				kept = lappend(kept, s);
		}
		list_free(m->receivers);
		m->receivers = kept;
	}
}

static int
ComparePlaces(const ListCell *a, const ListCell *b)
{
	return MessagePlaceCompare(&((TransactionMessage *) lfirst(a))->place,
							   &((TransactionMessage *) lfirst(b))->place);
}

bool
MessagesPrepare(Delivery *d)
{
	bool any = false;
	ListCell *lc;

	list_sort(d->messages, ComparePlaces);
	foreach(lc, d->messages)
	{
		TransactionMessage *m = lfirst(lc);

		m->groups = MessageGroups(m->receivers, &m->ngroups);
		if (m->ngroups > 0)
			any = true;
	}
	return any;
}

bool
MessagesForGateway(Delivery *d, Gateway *gateway)
{
	ListCell *lc;
	int i;

	foreach(lc, d->messages)
	{
		TransactionMessage *m = lfirst(lc);

		for (i = 0; i < m->ngroups; i++)
			if (m->groups[i].gateway == gateway)
				return true;
	}
	return false;
}

void
MessagesSend(Delivery *d, Gateway *gateway, const char *committed_at)
{
	uint8 flags = 0;
	ListCell *lc;
	int i;

	/*
	 * Nobody may come back with a position that he got before the rows of his
	 * snapshot were complete.
	 */
	if (d->only != NULL && !SubscribeResumes(d->only))
		flags = LINK_MESSAGE_NO_POSITION;
	foreach(lc, d->messages)
	{
		TransactionMessage *m = lfirst(lc);
		char *suffix = Suffix(&m->place);

		for (i = 0; i < m->ngroups; i++)
		{
			StringInfoData json;

			if (m->groups[i].gateway != gateway)
				continue;
			initStringInfo(&json);
			MessageBegin(&json, m->groups[i].one, m->params, m->event, m->payload,
						 m->payload_length);
			appendStringInfo(&json, ",\"txid\":\"" UINT64_FORMAT "\",\"committed_at\":\"%s\"",
							 d->transaction->commit.xid, committed_at);
			GatewayTransactionMessage(gateway, m->groups[i].numbers, m->groups[i].n, flags, suffix,
									  json.data, json.len);
			pfree(json.data);
		}
		pfree(suffix);
	}
}
