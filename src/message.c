/*-------------------------------------------------------------------------
 *
 * message.c
 *		Who gets a message, and as what text.
 *
 * A message goes to the subscriptions of one instance, whatever conditions
 * they have, and to those with "*" that the instance belongs to.  Each names
 * the channel as its client wrote it; those with the same spelling share the
 * text, which goes to each gateway once.
 *
 * Process: feed worker.  Memory: the turn's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "gateways.h"
#include "message.h"

bool
MessageMayReceive(const Subscription *s)
{
	/* While its rights are looked at again it gets nothing. */
	return s->announced && s->check == NULL && !s->connection->closing &&
		   (s->state == SUB_LOADING || s->state == SUB_CATCHUP || s->state == SUB_READY);
}

static List *
AddSubscriptions(List *list, Instance *instance)
{
	dlist_iter iter;

	dlist_foreach(iter, &instance->subscriptions)
		list = lappend(list, dlist_container(Subscription, instance_node, iter.cur));
	return list;
}

List *
MessageSubscriptions(Channel *channel, char *const *params)
{
	Instance *instance = InstanceFind(channel, params);
	List *result = NIL;
	ListCell *lc;

	if (instance != NULL)
		result = AddSubscriptions(result, instance);
	foreach(lc, InstancesStarred(channel))
		if (lfirst(lc) != instance && InstanceMatches(lfirst(lc), params))
			result = AddSubscriptions(result, lfirst(lc));
	return result;
}

static int
CompareSubscriptions(const void *a, const void *b)
{
	const Subscription *x = *(Subscription *const *) a;
	const Subscription *y = *(Subscription *const *) b;

	if (x->connection->gateway != y->connection->gateway)
		return x->connection->gateway->index < y->connection->gateway->index ? -1 : 1;
	if (x->name != y->name)
		return x->name < y->name ? -1 : 1;
	return 0;
}

MessageGroup *
MessageGroups(List *subscriptions, int *ngroups)
{
	int n = list_length(subscriptions);
	Subscription **sorted = palloc(sizeof(Subscription *) * Max(n, 1));
	uint32 *numbers = palloc(sizeof(uint32) * Max(n, 1));
	MessageGroup *groups;
	MessageGroup *group = NULL;
	ListCell *lc;
	int i = 0;

	foreach(lc, subscriptions)
		sorted[i++] = lfirst(lc);
	qsort(sorted, n, sizeof(Subscription *), CompareSubscriptions);

	/* No more than that: a transaction may have very many messages. */
	*ngroups = 0;
	for (i = 0; i < n; i++)
		if (i == 0 || CompareSubscriptions(&sorted[i - 1], &sorted[i]) != 0)
			(*ngroups)++;
	groups = palloc(sizeof(MessageGroup) * Max(*ngroups, 1));
	for (i = 0; i < n; i++)
	{
		numbers[i] = sorted[i]->connection->number;
		if (i == 0 || CompareSubscriptions(&sorted[i - 1], &sorted[i]) != 0)
		{
			group = group == NULL ? groups : group + 1;
			group->gateway = sorted[i]->connection->gateway;
			group->one = sorted[i];
			group->numbers = &numbers[i];
			group->n = 0;
		}
		group->n++;
	}
	pfree(sorted);
	return groups;
}

void
MessageBegin(StringInfo out, const Subscription *s, char *const *params, const char *event,
			 const char *payload, Size payload_length)
{
	appendStringInfoString(out, "{\"type\":\"message\",\"channel\":");
	appendBinaryStringInfo(out, s->name->json, s->name->length);
	if (s->instance->starred)
	{
		StringInfoData name;

		/* Which of them it is. */
		initStringInfo(&name);
		TemplateFormat(&name, s->instance->channel->template, params);
		appendStringInfoString(out, ",\"instance\":");
		EncodeString(out, name.data, name.len);
		pfree(name.data);
	}
	appendStringInfoString(out, ",\"event\":");
	EncodeString(out, event, strlen(event));
	appendStringInfoString(out, ",\"payload\":");
	appendBinaryStringInfo(out, payload, (int) payload_length);
}
