/*-------------------------------------------------------------------------
 *
 * visitor.h
 *		Sockets with the addresses that they come from, and what an address may
 *		have.
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_GATEWAY_VISITOR_H
#define CHANGEFEED_GATEWAY_VISITOR_H

#include "gateway.h"
#include "http.h"
#include "network.h"

/*
 * How far a rate was used up: the time at which, at that rate, it would be as
 * if nothing had been used.  One number is a whole token bucket: it is empty
 * when that time is a burst ahead.
 */
typedef uint64_t Bucket;

/* A burst is what comes in this time at the rate. */
#define BURST_NS UINT64_C(10000000000)

/* What an address has; in address_use.c's table. */
typedef struct AddressUse
{
	struct AddressUse *next; /* with the same hash */
	Address address;
	uint32_t sockets;
	Bucket handshakes;
	ListNode idle; /* while it has no sockets */
} AddressUse;

/* A socket, from its acceptance to its end. */
struct Visitor
{
	ListNode node; /* in the list of all */
	struct lws *wsi;
	WheelTimer late;  /* until its request is there */
	Address address;  /* the client's; a proxy's until the request is there */
	bool has_address; /* not if it came through a Unix socket */
	bool proxy;		  /* a trusted one: its header names the client */
	bool asked;		  /* its request is there */
	bool charged;	  /* for its handshake */
	AddressUse *use;  /* NULL: nobody's, as with proxies */
};

/* ---- address_use.c ---- */

extern void AddressUseStart(void);
extern AddressUse *AddressUseTake(const Address *address);
extern void AddressUseDrop(AddressUse *use);

static inline uint64_t
NowNs(void)
{
	return uv_now(&gateway.loop) * UINT64_C(1000000);
}

/* Is there room for `cost`? */
static inline bool
BucketHasRoom(Bucket bucket, uint64_t now, uint64_t cost, uint64_t burst)
{
	return bucket <= now || bucket - now + cost <= burst;
}

static inline void
BucketTake(Bucket *bucket, uint64_t now, uint64_t cost)
{
	*bucket = (*bucket > now ? *bucket : now) + cost;
}

/* ---- forwarded.c ---- */

typedef enum ForwardedResult
{
	FORWARDED_NONE, /* no header, or it names nobody */
	FORWARDED_FOUND,
	FORWARDED_MALFORMED
} ForwardedResult;

extern bool NetworksHold(const NetworkList *list, const Address *address);
extern ForwardedResult ForwardedAddress(struct lws *wsi, Address *address);

/* ---- visitor.c ---- */

extern bool VisitorCheck(struct lws *wsi, Refusal *refusal);

#endif /* CHANGEFEED_GATEWAY_VISITOR_H */
