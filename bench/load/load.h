/*-------------------------------------------------------------------------
 *
 * load.h
 *		The load generator: what its parts share.
 *
 * One process, one thread, one epoll. Its own limits are measured all the
 * time (stats.c), so that a result can say whether it was the bottleneck.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

typedef struct Conn Conn;
typedef struct Group Group;

/* A growing piece of memory; freed when it is empty and large. */
typedef struct Buffer
{
	char *data;
	size_t length;
	size_t room;
} Buffer;

/* Logarithmic buckets of 1/64 relative width: quantiles to within 1.6 %. */
#define HISTOGRAM_SUB  64
#define HISTOGRAM_SIZE (42 * HISTOGRAM_SUB)
typedef struct Histogram
{
	uint64_t counts[HISTOGRAM_SIZE];
	uint64_t total;
	int64_t max;
	double sum;
} Histogram;

/* What is spoken over WebSocket. */
typedef struct Protocol
{
	const char *name;
	const char *subprotocol; /* or NULL */
	const char *path;		 /* used if the group has none */
	bool is_stream;			 /* messages do not end where WebSocket messages end */
	/* The connection was upgraded: send what subscribes. */
	void (*opened)(Conn *c);
	/* Takes bytes, returns how many; of a protocol that is no stream, a whole message. */
	size_t (*take)(Conn *c, const char *data, size_t length);
} Protocol;

typedef enum ConnState
{
	CONN_NONE,
	CONN_CONNECTING,
	CONN_UPGRADING,
	CONN_OPEN, /* upgraded, not subscribed yet */
	CONN_READY
} ConnState;

struct Conn
{
	int fd;
	ConnState state;
	Group *group;
	uint32_t index;	  /* within the group */
	uint32_t channel; /* of its first subscription */
	uint32_t nready;  /* subscriptions that are ready */
	bool is_stamped;  /* the kernel tells when bytes came */
	bool knows_n;	  /* next_n is what has to come */
	uint64_t next_n;
	uint64_t seq; /* of the last transaction frame (changefeed) */
	uint64_t received;
	int64_t began_us; /* when it began to connect */
	Buffer in;		  /* bytes that are no whole frame yet */
	Buffer message;	  /* a message, or a stream, that is not whole yet */
	char position[64];
	Conn *next_waiting; /* in the queue of those that are to connect */
};

struct Group
{
	char *name;
	const Protocol *protocol;
	char *host;
	int port;
	char *path;
	char *channel; /* "{i}" stands for the number */
	char **tokens;
	uint32_t ntokens;
	uint32_t nconns;
	uint32_t subscriptions; /* per connection */
	uint32_t first;			/* number of the first channel */
	uint32_t channels;
	uint32_t sources; /* addresses 127.0.0.1 and following to connect from */
	uint32_t window;  /* how many connect at a time; 0: all */
	int retry_ms;	  /* who is refused or lost comes again; -1: that is an error */
	bool snapshot;
	bool keeps_positions;
	bool uses_positions; /* resume */
	bool stalls;	   /* whoever is ready reads nothing more */
	uint32_t sip;	   /* but for so many bytes with each pong */
	uint32_t nlost;	   /* of them, whom the server has dropped */
	bool is_opening;
	int64_t spread_us; /* they come within that time, evenly */
	uint32_t nreleased;
	bool says_lost; /* the opening began when the first connection was lost */
	Conn *conns;
	Conn *waiting;
	Conn *waiting_tail;
	uint32_t nconnecting;
	uint32_t nready;
	uint32_t retries;
	uint32_t recovered;
	uint32_t snapshots;
	uint32_t resyncs;
	uint64_t snapshot_bytes;
	int64_t opened_us; /* when the opening began */
	Histogram ready_us;
	Group *next;
};

/* ---- main.c ---- */
extern int poll_fd;
extern int64_t now_us; /* CLOCK_REALTIME, when the bytes at hand were there */
extern Group *groups;

extern void Die(const char *what) __attribute__((noreturn));
/* Something that must not happen: told, counted, and the run is not valid. */
extern void Wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern void Tell(json_t *event); /* takes the reference */
extern int64_t Now(void);
extern void *Allocate(void *old, size_t size);
extern void BufferAppend(Buffer *b, const char *data, size_t length);
extern void BufferFree(Buffer *b);
/* Writes pattern with the number in place of {i} into out. */
extern const char *Expand(const char *pattern, uint32_t number, char *out, size_t size);
extern const char *Text(json_t *command, const char *name, const char *otherwise);
extern int64_t Number(json_t *command, const char *name, int64_t otherwise);
extern bool Flag(json_t *command, const char *name, bool otherwise);

/* ---- conn.c ---- */
extern void GroupOpen(json_t *command);
extern void GroupReopen(json_t *command);
extern void GroupClose(json_t *command);
extern void GroupsAdvance(void);
extern void ConnEvent(Conn *c, uint32_t events);
extern void ConnSend(Conn *c, int opcode, const char *data, size_t length);
/* One of its subscriptions is ready. */
extern void ConnReady(Conn *c);
/* It cannot go on: refused, or lost. */
extern void ConnFail(Conn *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A message came: looks for the numbers in it. */
extern void ConnTake(Conn *c, const char *data, size_t length);
/* The last number in a snapshot is what the next message follows. */
extern void ConnLearn(Conn *c, const char *data, size_t length);
extern int64_t GroupsNextTime(void); /* when GroupsAdvance() has to do, or 0 */

/* ---- protocols ---- */
extern const Protocol protocol_changefeed;
extern const Protocol protocol_text;
extern const Protocol protocol_nats;
extern const Protocol protocol_mqtt;
extern size_t MqttString(char *out, const char *text);
extern size_t MqttLength(char *out, size_t length);

/* ---- publish.c ---- */
extern void Publish(json_t *command);
extern void PublishAdvance(void);
extern void PublishEvent(uint32_t events);
extern void *const publisher_event; /* stands for the publisher in epoll */
extern int64_t PublishNextTime(void);
/* Ends with what was sent so far. */
extern void PublishFinish(void);
/* How many connections are subscribed to a channel. */
extern void ChannelCount(uint32_t channel, int difference);
extern uint64_t
ChannelLast(uint32_t channel); /* number of the last message, 0: none or not known */

/* ---- stats.c ---- */
extern Histogram latency_us;
extern Histogram turn_us;
extern Histogram lag_us;
extern uint64_t deliveries;
extern uint64_t delivered_bytes;
extern uint64_t wrongs;
extern bool keep_samples;
extern void HistogramAdd(Histogram *h, int64_t value);
extern json_t *HistogramJson(const Histogram *h);
extern void StatsReset(void);
extern json_t *StatsJson(void);
extern void SampleAdd(int64_t sent_us, int64_t latency);
extern void SamplesWrite(const char *file);

#endif
