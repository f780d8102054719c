/*-------------------------------------------------------------------------
 *
 * query_pages.c
 *		The pages of a snapshot on their way out.
 *
 * Pages stay in memory while there are few, and are sent as messages.  As soon
 * as they are too many all of them go to a file in the server's directory for
 * temporary files, which the feed worker opens and unlinks.  Until it has been
 * told the file is ours, and removed if anything goes wrong.
 *
 * Process: query worker; one snapshot at a time.  Locks: none.  Memory:
 * query_job_context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"
#include "link_format.h"

#include <fcntl.h>
#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#define INLINE_BYTES (64 * 1024)  /* in all; beyond it a file is used */
#define WRITE_BYTES	 (256 * 1024) /* larger pages are not put behind what waits */

static int spool_fd = -1;
static char spool_path[MAXPGPATH]; /* empty: no file of ours */
static uint32 spool_counter;

/* ---- The spool file ---- */

void
QueryPagesCleanup(void)
{
	if (spool_fd >= 0)
	{
		close(spool_fd);
		spool_fd = -1;
	}
	if (spool_path[0] != '\0')
	{
		(void) unlink(spool_path);
		spool_path[0] = '\0';
	}
}

static void
SpoolOpen(void)
{
	char path[MAXPGPATH];

	snprintf(path, sizeof(path), "%s/%s%u.%u.%d.%u", QUERY_SPOOL_DIRECTORY, QUERY_SPOOL_PREFIX,
			 MyDatabaseId, query_generation, MyProcPid, spool_counter++);
	spool_fd = BasicOpenFile(path, O_RDWR | O_CREAT | O_TRUNC | PG_BINARY);
	if (spool_fd < 0 && errno == ENOENT)
	{
		/* The server makes the directory when it first needs it, too. */
		(void) MakePGDirectory(QUERY_SPOOL_DIRECTORY);
		spool_fd = BasicOpenFile(path, O_RDWR | O_CREAT | O_TRUNC | PG_BINARY);
	}
	if (spool_fd < 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not create temporary file \"%s\": %m", path)));
	strlcpy(spool_path, path, sizeof(spool_path));
}

static void
SpoolWrite(QueryPages *pages)
{
	const char *data = pages->buffer.data;
	int left = pages->buffer.len;

	pages->size += left;
	if (pages->limit >= 0 && pages->size > (uint64) pages->limit * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("snapshot exceeds temp_file_limit (" INT64_FORMAT " kB)", pages->limit),
				 errhint("Subscribe to less, or raise temp_file_limit.")));
	if (pages->size > (uint64) setting_snapshot_space * 1024 * 1024)
		ereport(ERROR, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
						errmsg("snapshot exceeds changefeed.snapshot_space (%d MB)",
							   setting_snapshot_space),
						errhint("Subscribe to less, or raise changefeed.snapshot_space.")));
	while (left > 0)
	{
		int written;

		errno = 0;
		pgstat_report_wait_start(WAIT_EVENT_BUFFILE_WRITE);
		written = write(spool_fd, data, left);
		pgstat_report_wait_end();
		if (written <= 0)
		{
			if (written < 0 && errno == EINTR)
				continue;
			if (errno == 0)
				errno = ENOSPC;
			ereport(ERROR, (errcode_for_file_access(),
							errmsg("could not write to temporary file \"%s\": %m", spool_path)));
		}
		data += written;
		left -= written;
	}
	resetStringInfo(&pages->buffer);
}

/* ---- Pages ---- */

/*
 * Many may have been asked for while there was space.  That it is missing passes,
 * so the feed worker asks again.
 */
void
QueryPagesRequireSpace(void)
{
	if (pg_atomic_read_u64(&query_feed->feed_snapshot_bytes) >=
		(uint64) setting_snapshot_space * 1024 * 1024)
		ereport(
			ERROR,
			(errcode(MAKE_SQLSTATE(QUERY_NO_SPACE[0], QUERY_NO_SPACE[1], QUERY_NO_SPACE[2],
								   QUERY_NO_SPACE[3], QUERY_NO_SPACE[4])),
			 errmsg("snapshots on their way to clients take all of changefeed.snapshot_space")));
}

void
QueryPagesInit(QueryPages *pages, Oid role)
{
	char *setting = QueryRoleSetting(role, "temp_file_limit");
	MemoryContext old = MemoryContextSwitchTo(query_job_context);
	int value;

	memset(pages, 0, sizeof(QueryPages));
	initStringInfo(&pages->page);
	initStringInfo(&pages->versions);
	initStringInfo(&pages->buffer);
	MemoryContextSwitchTo(old);
	pages->inline_bytes = INLINE_BYTES;
	pages->limit = temp_file_limit;
	if (setting != NULL && parse_int(setting, &value, GUC_UNIT_KB, NULL))
		pages->limit = value;
}

void
QueryPageBegin(QueryPages *pages, int source)
{
	pages->source = source;
	pages->rows = 0;
	resetStringInfo(&pages->page);
	resetStringInfo(&pages->versions);
	appendStringInfoChar(&pages->page, '[');
}

void
QueryPageVersion(QueryPages *pages, uint64 version)
{
	appendStringInfo(&pages->versions, "%s\"" UINT64_FORMAT "\"",
					 pages->versions.len > 0 ? "," : "", version);
}

void
QueryPageEnd(QueryPages *pages)
{
	appendStringInfoChar(&pages->page, ']');
	if (pages->with_versions)
		appendStringInfo(&pages->page, ",\"versions\":[%s]", pages->versions.data);

	Assert(pages->page.len <= LINK_MAX_PAGE);

	/* A row may be huge: what is waiting goes first. */
	if (pages->buffer.len + pages->page.len > (int64) pages->inline_bytes && !pages->spooled)
	{
		SpoolOpen();
		pages->spooled = true;
	}
	WirePutU32(&pages->buffer, pages->page.len);
	WirePutU32(&pages->buffer, pages->source);
	if (pages->spooled && pages->page.len > WRITE_BYTES)
		SpoolWrite(pages);
	appendBinaryStringInfo(&pages->buffer, pages->page.data, pages->page.len);
	if (pages->spooled)
		SpoolWrite(pages);
}

/* After the transaction: however long it takes. */
void
QueryPagesSend(QueryPages *pages)
{
	StringInfoData message;

	initStringInfo(&message);
	if (pages->spooled)
	{
		close(spool_fd);
		spool_fd = -1;
		pgstat_report_tempfile(pages->size);
		QueryMessage(&message, QUERY_FILE);
		WirePutString(&message, spool_path);
		WirePutU64(&message, pages->size);
		/* From now on it is the receiver's. */
		QuerySend(&message);
		spool_path[0] = '\0';
	}
	else
	{
		WireReader reader = WireReaderInit(pages->buffer.data, pages->buffer.len);

		while (!WireAtEnd(&reader))
		{
			uint32 length = WireGetU32(&reader);
			uint32 source = WireGetU32(&reader);
			const char *text = WireTake(&reader, length);

			Assert(text != NULL);
			QueryMessage(&message, QUERY_PAGE);
			WirePutU16(&message, (uint16) source);
			WirePutBytes(&message, text, length);
			QuerySendPart(&message);
		}
	}
}
