/*-------------------------------------------------------------------------
 *
 * log_open.c
 *		The transaction that the decoder is sending: from records to one chunk.
 *
 * Records of the open transaction are collected in one buffer; at its COMMIT
 * they become one chunk, so that dropping a transaction is one pfree.  Beside
 * them come the descriptions that the records name, and which tables were
 * touched when.
 *
 * Process: feed worker.  Memory: what is open lives in a context of its own,
 * which is reset; descriptions, touches and chunks in that of the log.
 * Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "log_open.h"
#include "feed.h"
#include "wire.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

typedef struct DescriptionEntry
{
	uint32 version;
	RecordDescription *desc;
} DescriptionEntry;

typedef struct TouchEntry
{
	Oid relid;
	XLogRecPtr lsn;
} TouchEntry;

/* The open transaction: offsets into `bytes` until it is complete. */
typedef struct OpenTransaction
{
	StringInfoData bytes; /* whole messages, each at a multiple of 8 */
	int nchanges;
	int maxchanges;
	RecordChange *changes; /* data pointers hold offsets */
	List *touched;
	List *untold;
	List *lost;
	const char *lost_reason;
	int nbarriers;
	int maxbarriers;
	LogBarrier *barriers;
	int nmessages;
	StringInfoData messages; /* whole records, each behind its length */
	bool too_large;
} OpenTransaction;

static MemoryContext log_context;
static MemoryContext open_context;
static HTAB *descriptions;
static HTAB *touches;
static OpenTransaction open_transaction;

static void
ResetOpen(void)
{
	MemoryContextReset(open_context);
	memset(&open_transaction, 0, sizeof(open_transaction));
}

void
LogOpenInit(MemoryContext context)
{
	HASHCTL ctl;

	log_context = context;
	open_context = AllocSetContextCreate(TopMemoryContext, "changefeed open transaction",
										 ALLOCSET_DEFAULT_SIZES);

	ctl.keysize = sizeof(uint32);
	ctl.entrysize = sizeof(DescriptionEntry);
	ctl.hcxt = log_context;
	descriptions = hash_create("changefeed descriptions", 64, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(TouchEntry);
	touches = hash_create("changefeed touched tables", 64, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ResetOpen();
}

static void
ReceiveDescription(const char *data, Size length)
{
	RecordDescription *desc = RecordReadDescription(data, length, log_context);
	bool found;
	DescriptionEntry *entry = hash_search(descriptions, &desc->version, HASH_ENTER, &found);

	entry->desc = desc;
}

const RecordDescription *
LogDescription(uint32 version)
{
	DescriptionEntry *entry = hash_search(descriptions, &version, HASH_FIND, NULL);

	if (entry == NULL)
		elog(ERROR, "change record names unknown description %u", version);
	return entry->desc;
}

static void
AddLost(Oid relid, const char *reason)
{
	MemoryContext old = MemoryContextSwitchTo(open_context);

	open_transaction.lost = list_append_unique_oid(open_transaction.lost, relid);
	open_transaction.lost_reason = reason;
	MemoryContextSwitchTo(old);
}

/*
 * Beyond the limit only the tables are remembered: their subscriptions get
 * fresh snapshots instead.
 */
static void
BecomeTooLarge(void)
{
	OpenTransaction *open = &open_transaction;
	uint32 version = 0;
	int i;

	if (open->too_large)
		return;
	open->too_large = true;
	for (i = 0; i < open->nchanges; i++)
	{
		if (open->changes[i].version == version)
			continue;
		version = open->changes[i].version;
		AddLost(LogDescription(version)->relid, "transaction_too_large");
	}
	open->nchanges = 0;
	if (open->bytes.data != NULL)
	{
		pfree(open->bytes.data);
		pfree(open->changes);
	}
	open->changes = NULL;
	memset(&open->bytes, 0, sizeof(open->bytes));
}

static void
ReceiveChange(const char *data, Size length)
{
	OpenTransaction *open = &open_transaction;
	RecordChange change;
	Size offset;

	RecordReadChange(data, length, &change);

	if (open->bytes.len + length > (Size) setting_max_transaction * 1024)
		BecomeTooLarge();
	if (open->too_large)
	{
		AddLost(LogDescription(change.version)->relid, "transaction_too_large");
		return;
	}

	if (open->bytes.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(open_context);

		initStringInfo(&open->bytes);
		open->maxchanges = 16;
		open->changes = palloc(sizeof(RecordChange) * open->maxchanges);
		MemoryContextSwitchTo(old);
	}
	if (open->nchanges == open->maxchanges)
	{
		open->maxchanges *= 2;
		open->changes = repalloc_huge(open->changes, sizeof(RecordChange) * open->maxchanges);
	}

	offset = MAXALIGN(open->bytes.len);
	enlargeStringInfo(&open->bytes, (int) (offset - open->bytes.len + length));
	memset(open->bytes.data + open->bytes.len, 0, offset - open->bytes.len);
	memcpy(open->bytes.data + offset, data, length);
	open->bytes.len = (int) (offset + length);

	/* Pointers become offsets: the buffer may still move. */
	if (change.has_old)
	{
		change.old_data = (const char *) (offset + (change.old_data - data));
		RecordForgetRowType(open->bytes.data + (Size) change.old_data);
	}
	if (change.has_new)
	{
		change.new_data = (const char *) (offset + (change.new_data - data));
		RecordForgetRowType(open->bytes.data + (Size) change.new_data);
	}
	open->changes[open->nchanges++] = change;
}

static void
ReceiveBarrier(const char *data, Size length)
{
	OpenTransaction *open = &open_transaction;
	LogBarrier barrier;

	RecordReadBarrier(data, length, &barrier.kind, &barrier.relid, &barrier.state);
	if (open->nbarriers == open->maxbarriers)
	{
		open->maxbarriers = Max(8, open->maxbarriers * 2);
		if (open->barriers == NULL)
			open->barriers = MemoryContextAlloc(open_context,
												sizeof(LogBarrier) * open->maxbarriers);
		else
			open->barriers = repalloc(open->barriers, sizeof(LogBarrier) * open->maxbarriers);
	}
	open->barriers[open->nbarriers++] = barrier;
}

/* They are kept even if there are too many rows. */
static void
ReceiveMessage(const char *data, Size length)
{
	OpenTransaction *open = &open_transaction;
	uint32 n = (uint32) length;

	if (open->messages.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(open_context);

		initStringInfo(&open->messages);
		MemoryContextSwitchTo(old);
	}
	appendBinaryStringInfo(&open->messages, (const char *) &n, sizeof(n));
	appendBinaryStringInfo(&open->messages, data, (int) length);
	open->nmessages++;
}

static const char *
CopyText(char **at, WireBytes text)
{
	char *copy = *at;

	memcpy(copy, text.data, text.length);
	copy[text.length] = '\0';
	*at += text.length + 1;
	return copy;
}

/* Moves them to the chunk; each is a little shorter there than its record. */
static void
TakeMessages(LogTransaction *transaction, char *p)
{
	OpenTransaction *open = &open_transaction;
	WireReader r = WireReaderInit(open->messages.data, open->messages.len);
	int i;

	transaction->nmessages = open->nmessages;
	transaction->messages = (LogMessage *) p;
	p += MAXALIGN(sizeof(LogMessage) * open->nmessages);
	for (i = 0; i < open->nmessages; i++)
	{
		WireBytes record = WireGetBytes(&r);
		LogMessage *to = &transaction->messages[i];
		RecordMessage from;

		RecordReadMessage(record.data, record.length, &from);
		to->counter = from.counter;
		to->payload_length = (uint32) from.payload.length;
		to->channel = CopyText(&p, from.channel);
		to->event = CopyText(&p, from.event);
		to->payload = CopyText(&p, from.payload);
	}
}

/* The open transaction is complete: it becomes one chunk. */
static LogTransaction *
ReceiveCommit(const char *data, Size length)
{
	OpenTransaction *open = &open_transaction;
	LogTransaction *transaction;
	RecordCommit commit;
	Size size = MAXALIGN(sizeof(LogTransaction));
	char *p;
	char *bytes;
	ListCell *lc;
	int i;

	RecordReadCommit(data, length, &commit);

	size += MAXALIGN(sizeof(LogChange) * open->nchanges);
	size += MAXALIGN(sizeof(Oid) * list_length(open->touched));
	size += MAXALIGN(sizeof(Oid) * list_length(open->untold));
	size += MAXALIGN(sizeof(Oid) * list_length(open->lost));
	size += MAXALIGN(sizeof(LogBarrier) * open->nbarriers);
	size += MAXALIGN(open->bytes.len);
	size += MAXALIGN(sizeof(LogMessage) * open->nmessages) + MAXALIGN(open->messages.len);

	p = MemoryContextAllocHuge(log_context, size);
	transaction = (LogTransaction *) p;
	memset(transaction, 0, sizeof(LogTransaction));
	transaction->chunk = p;
	transaction->size = size;
	transaction->commit = commit;
	transaction->received = GetCurrentTimestamp();
	p += MAXALIGN(sizeof(LogTransaction));

	transaction->nchanges = open->nchanges;
	transaction->changes = (LogChange *) p;
	p += MAXALIGN(sizeof(LogChange) * open->nchanges);

	transaction->touched = (Oid *) p;
	foreach(lc, open->touched)
	{
		bool found;
		TouchEntry *entry = hash_search(touches, &lfirst_oid(lc), HASH_ENTER, &found);

		entry->lsn = commit.lsn;
		transaction->touched[transaction->ntouched++] = lfirst_oid(lc);
	}
	p += MAXALIGN(sizeof(Oid) * list_length(open->touched));

	transaction->untold = (Oid *) p;
	foreach(lc, open->untold)
		transaction->untold[transaction->nuntold++] = lfirst_oid(lc);
	p += MAXALIGN(sizeof(Oid) * list_length(open->untold));

	transaction->lost = (Oid *) p;
	foreach(lc, open->lost)
		transaction->lost[transaction->nlost++] = lfirst_oid(lc);
	transaction->lost_reason = open->lost_reason;
	p += MAXALIGN(sizeof(Oid) * list_length(open->lost));

	transaction->barriers = (LogBarrier *) p;
	transaction->nbarriers = open->nbarriers;
	if (open->nbarriers > 0)
		memcpy(p, open->barriers, sizeof(LogBarrier) * open->nbarriers);
	p += MAXALIGN(sizeof(LogBarrier) * open->nbarriers);

	bytes = p;
	if (open->bytes.len > 0)
		memcpy(bytes, open->bytes.data, open->bytes.len);
	p += MAXALIGN(open->bytes.len);
	TakeMessages(transaction, p);
	for (i = 0; i < open->nchanges; i++)
	{
		RecordChange *from = &open->changes[i];
		LogChange *to = &transaction->changes[i];

		to->desc = LogDescription(from->version);
		to->operation = from->operation;
		to->has_old = from->has_old;
		to->has_new = from->has_new;
		to->old_length = from->old_length;
		to->new_length = from->new_length;
		to->xid = transaction->commit.xid;
		/* Subtransactions get theirs behind the transaction. */
		if (TransactionIdIsValid(from->subxid))
			to->xid += from->subxid - (uint32) to->xid;
		to->old_data = from->has_old ? bytes + (Size) from->old_data : NULL;
		to->new_data = from->has_new ? bytes + (Size) from->new_data : NULL;
	}

	ResetOpen();
	return transaction;
}

static void
ReceiveTouch(const char *data, Size length)
{
	MemoryContext old = MemoryContextSwitchTo(open_context);
	Oid relid;
	bool told;

	RecordReadTouch(data, length, &relid, &told);

	/* A second time it comes only to say that not all is told. */
	if (told || !list_member_oid(open_transaction.touched, relid))
		open_transaction.touched = lappend_oid(open_transaction.touched, relid);
	if (!told)
		open_transaction.untold = lappend_oid(open_transaction.untold, relid);
	MemoryContextSwitchTo(old);
}

static void
ReceiveLost(const char *data, Size length)
{
	bool too_large;
	Oid relid = RecordReadLost(data, length, &too_large);

	if (too_large)
		BecomeTooLarge();
	AddLost(relid, too_large ? "transaction_too_large" : "change_not_readable");
}

LogTransaction *
LogOpenReceive(const char *data, Size length)
{
	switch ((RecordKind) ((const RecordHeader *) data)->kind)
	{
		case RECORD_DESCRIPTION:
			ReceiveDescription(data, length);
			break;
		case RECORD_CHANGE:
			ReceiveChange(data, length);
			break;
		case RECORD_TOUCH:
			ReceiveTouch(data, length);
			break;
		case RECORD_TRUNCATE:
			AddLost(RecordReadTruncate(data, length), "truncated");
			break;
		case RECORD_LOST:
			ReceiveLost(data, length);
			break;
		case RECORD_BARRIER:
			ReceiveBarrier(data, length);
			break;
		case RECORD_MESSAGE:
			ReceiveMessage(data, length);
			break;
		case RECORD_COMMIT:
			return ReceiveCommit(data, length);
		default:
			elog(ERROR, "change record of unknown kind %d", ((const RecordHeader *) data)->kind);
	}
	return NULL;
}

XLogRecPtr
LogLastTouch(Oid relid)
{
	TouchEntry *entry = hash_search(touches, &relid, HASH_FIND, NULL);

	return entry != NULL ? entry->lsn : InvalidXLogRecPtr;
}
