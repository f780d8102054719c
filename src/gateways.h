/*-------------------------------------------------------------------------
 *
 * gateways.h
 *		The gateways: starting them, and talking over their links.
 *
 * The feed worker binds the port, starts `changefeed.gateways` programs and
 * hands the listening sockets to each.  A gateway that ends takes its
 * connections with it and is started again, at once if it had lived a while.
 * Messages are only queued here; GatewaysFlush writes what the links take.
 *
 * Process: feed worker.  Memory: gateways are never freed (there are few); the
 * links' buffers are malloc'ed by linkframe.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_GATEWAYS_H
#define CHANGEFEED_GATEWAYS_H

#include "feed.h"
#include "linkframe.h"

#include "storage/latch.h"

#define MAX_GATEWAYS 16

/* Characters of a client's address */
#define GATEWAY_PEER_MAX 63

/* Codes of refused requests; more of them are counted as one. */
#define MAX_REFUSALS 32

typedef struct GatewayStats
{
	uint64 accepted;
	uint64 open;
	uint64 frames;
	uint64 bytes;
	uint64 queued_bytes;
	uint64 behind_events;
	uint64 refused;
	uint64 received_bytes;
	Histogram lag;
	uint32 nrefusals;
	struct
	{
		char code[32];
		uint64 n;
	} refusals[MAX_REFUSALS];
	uint64 throttled;
} GatewayStats;

/* Whom something was asked, and which answer it is. */
typedef struct GatewayQuestion
{
	uint32 serial[MAX_GATEWAYS]; /* 0: it was not asked */
	uint32 number[MAX_GATEWAYS];
} GatewayQuestion;

typedef struct Gateway
{
	int index;
	uint32 serial;	 /* changes with every start */
	pid_t pid;		 /* 0: not running */
	LinkFrame *link; /* NULL: not running */
	bool greeted;	 /* LINK_HELLO came */
	bool unfinished; /* messages that were read are yet to be handled */
	TimestampTz started;
	TimestampTz start_at; /* when not running: not before */
	int failures;
	List *zombies;			 /* pids to be reaped */
	uint32 connections;		 /* that it has told of and we have */
	uint32 most_connections; /* that it was allowed */
	int nfiles;				 /* of snapshots that it has open, and may have */
	int places;

	/* gateway_stats.c */
	GatewayStats stats; /* as it last told */
	uint32 stats_asked; /* questions; answers come in their order */
	uint32 stats_answered;
	uint64 probed; /* number of the last probe that came back */
} Gateway;

extern Gateway gateways[MAX_GATEWAYS];
extern int gateway_count;

/* Reads the settings; nothing is started or bound yet. */
extern void GatewaysInit(void);

/* Binds, starts and restarts what is due; returns ms until the next try. */
extern long GatewaysMaintain(bool may_listen);

/*
 * The set to wait on: latch, postmaster's death, commits (with the feed's
 * entry as user data), links.  Made when needed.
 */
#define GATEWAYS_EVENTS (MAX_GATEWAYS + 3)
extern WaitEventSet *GatewaysWaitSet(void);

/* Reads a link and handles its messages.  True: there may be more. */
extern bool GatewayReceive(Gateway *gateway);

/* Writes queued bytes; links whose sockets are full are waited for. */
extern void GatewaysFlush(void);

/* Bytes queued for the slowest link. */
extern Size GatewaysPending(void);

/* Tell all clients good-bye and wait at most `ms` for the gateways to end. */
extern void GatewaysShutdown(const char *reason, int ms);

/* Settings were reloaded. */
extern void GatewaysConfigure(void);

/* The feed is paused, or goes on: feed_paused was changed. */
extern void GatewaysPause(void);

extern void GatewaySend(Connection *connection, const char *data, Size length);

/* A message that is true only if everything before it arrives. */
extern void GatewaySynced(Connection *connection, const char *data, Size length);
extern void GatewayIdentity(Connection *connection);
extern void GatewayClose(Connection *connection, uint16 code, const char *reason);
extern void GatewayResume(Connection *connection);
extern void GatewayWaiting(Connection *connection);
extern void GatewayMark(Connection *connection, uint32 mark);
extern void
GatewayCast(Gateway *gateway, const uint32 *numbers, int count, const char *data, Size length);

/* The same, but never left out: for what the sender bounds by itself. */
extern void
GatewayShare(Gateway *gateway, const uint32 *numbers, int count, const char *data, Size length);
extern void GatewayPing(Gateway *gateway, const uint32 *numbers, int count, const char *before,
						Size before_length, const char *after, Size after_length);
extern void GatewaySnapshot(Connection *connection, uint32 subscription, int nprefixes,
							StringInfo prefixes, int fd);
extern void GatewaySnapshotStop(Connection *connection, uint32 subscription);

/* Descriptors and memory are few: there is enough that the gateway has not taken. */
extern bool GatewayHasEnough(const Connection *connection);

extern void GatewayTransactionTime(Gateway *gateway, TimestampTz committed);
extern void
GatewayTransactionBegin(Gateway *gateway, uint64 number, uint8 flags, const char *before,
						Size before_length, const char *after, Size after_length);

/* `name`: the channel's, with which the text begins; NULL: it is all in `data`. */
#define LINK_FRAGMENT_BEGIN "{\"channel\":"
extern void GatewayTransactionFragment(Gateway *gateway, const uint32 *numbers, int count,
									   const Spelling *name, const char *data, Size length);

/* For those that follow. */
extern void GatewayTransactionAudience(Gateway *gateway, const uint32 *numbers, int count);
extern void GatewayTransactionShared(Gateway *gateway, int audience, const Spelling *name,
									 const char *data, Size length);
extern void
GatewayTransactionMessage(Gateway *gateway, const uint32 *numbers, int count, uint8 flags,
						  const char *suffix, const char *data, Size length);
extern void GatewayTransactionEnd(Gateway *gateway);

/* gateway_stats.c: what gateways count, and whether they live */

/* Asks all; Gateway.stats is of now when GatewaysAnswered. */
extern void GatewaysAskStats(GatewayQuestion *question);

/* The same for what they know of these connections, for Connection's fields. */
extern void GatewaysAskConnections(GatewayQuestion *question, const uint64 *ids, int n);

/* Those that were asked have answered, or are gone. */
extern bool GatewaysAnswered(const GatewayQuestion *question);

/* Are the connection's fields from this question's answer? */
extern bool GatewayKnows(const GatewayQuestion *question, const Connection *connection);

/* Sends a message on a round trip through all of them. */
extern void GatewaysProbe(GatewayQuestion *question);
extern bool GatewaysProbed(const GatewayQuestion *question);

extern void GatewayReadStats(Gateway *gateway, WireReader *r);
extern void GatewayReadConnections(Gateway *gateway, WireReader *r);

#endif /* CHANGEFEED_GATEWAYS_H */
