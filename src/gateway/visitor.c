/*-------------------------------------------------------------------------
 *
 * visitor.c
 *		Who may come in: address lists, and limits by address and in time.
 *
 * A socket is a visitor from its acceptance on.  What its address alone decides
 * is decided before anything is read: who is denied is dropped, and so is who has
 * far more sockets than an address may have, whether they are handshakes that
 * never end or connections.  The rest is told, by an answer to the request: only
 * then a proxy has said whose it is, and only then there is somebody to tell.
 * A TLS handshake costs more than all that, so for those the rates count before.
 *
 * The request has to be there in time; that includes the TLS handshake.
 *
 * Process: gateway.  Memory: a Visitor is lws' "user" pointer, made with the
 * socket and freed in lws' WSI_DESTROY.
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "visitor.h"

/* Sockets of an address beyond its limit, for being told so. */
#define SPARE_SOCKETS 32

static ListNode all;

/* Of all handshakes. */
static Bucket handshakes;

/* Some more milliseconds: a late answer is drawn up on the wheel's tick. */
static const char late_answer[] =
	"HTTP/1.1 408 Request Timeout\r\n"
	"Content-Type: application/json\r\n"
	"Connection: close\r\n"
	"\r\n"
	"{\"code\":\"timeout\",\"message\":\"the request did not come in time\","
	"\"hint\":\"The setting is changefeed.handshake_timeout.\"}";

void
VisitorStart(void)
{
	ListInit(&all);
	AddressUseStart();
}

/* ---- rates ---- */

static uint64_t
Cost(uint32_t rate)
{
	return UINT64_C(1000000000) / rate;
}

static bool
HandshakeHasRoom(Bucket bucket, uint32_t rate)
{
	return rate == 0 || BucketHasRoom(bucket, NowNs(), Cost(rate), BURST_NS);
}

/* Counts a handshake; who is refused has not had one. */
static void
Charge(Visitor *visitor)
{
	visitor->charged = true;
	if (gateway.max_handshake_rate > 0)
		BucketTake(&handshakes, NowNs(), Cost(gateway.max_handshake_rate));
	if (gateway.max_handshake_rate_per_address > 0 && visitor->use != NULL)
		BucketTake(&visitor->use->handshakes, NowNs(),
				   Cost(gateway.max_handshake_rate_per_address));
}

static bool
AddressHasRoom(const Visitor *visitor)
{
	return visitor->use == NULL ||
		   HandshakeHasRoom(visitor->use->handshakes, gateway.max_handshake_rate_per_address);
}

/* ---- sockets ---- */

static bool
AddressIsAllowed(const Visitor *visitor)
{
	if (!visitor->has_address)
		return true;
	return !NetworksHold(&gateway.denied_addresses, &visitor->address) &&
		   (gateway.allowed_addresses.n == 0 ||
			NetworksHold(&gateway.allowed_addresses, &visitor->address));
}

static void
Drop(Visitor *visitor, const char *code)
{
	gateway.refused++;
	StatsNoteRefusal(code);
	VisitorForget(visitor);
}

/*
 * A socket was accepted, with that peer.  NULL: it is to be closed, and nothing
 * more.
 */
Visitor *
VisitorAccept(const struct sockaddr *peer, bool tls)
{
	Visitor *visitor = GatewayAllocZero(sizeof(Visitor));
	uint32_t limit = gateway.max_connections_per_address;

	visitor->has_address = AddressOfSocket(peer, &visitor->address);
	visitor->late.is_visitor = true;
	visitor->proxy = visitor->has_address
						 ? NetworksHold(&gateway.trusted_proxies, &visitor->address)
						 : gateway.trust_unix;
	ListAppend(&all, &visitor->node);
	if (!visitor->has_address || visitor->proxy)
		return visitor;

	if (NetworksHold(&gateway.denied_addresses, &visitor->address))
	{
		Drop(visitor, "address_not_allowed");
		return NULL;
	}
	visitor->use = AddressUseTake(&visitor->address);
	if (limit > 0 && visitor->use->sockets > limit + SPARE_SOCKETS)
	{
		Drop(visitor, "too_many_connections_of_address");
		return NULL;
	}
	if (!tls)
		return visitor;
	if (!AddressHasRoom(visitor) || !HandshakeHasRoom(handshakes, gateway.max_handshake_rate))
	{
		Drop(visitor, "too_many_handshakes");
		return NULL;
	}
	Charge(visitor);
	return visitor;
}

/* lws has taken the socket. */
void
VisitorBegin(Visitor *visitor, struct lws *wsi)
{
	visitor->wsi = wsi;
	lws_set_wsi_user(wsi, visitor);
	if (gateway.handshake_timeout_ms == 0)
		return;
	WheelSet(&visitor->late, gateway.handshake_timeout_ms);

	/*
	 * lws keeps its times in a sorted list, and goes through all that are there for
	 * each that is added: with thousands of handshakes under way most of the work.
	 */
	lws_set_timeout(wsi, NO_PENDING_TIMEOUT, 0);
}

void
VisitorForget(Visitor *visitor)
{
	WheelRemove(&visitor->late);
	ListRemove(&visitor->node);
	if (visitor->use != NULL)
		AddressUseDrop(visitor->use);
	free(visitor);
}

/* lws' WSI_DESTROY */
void
VisitorGone(struct lws *wsi)
{
	Visitor *visitor = lws_wsi_user(wsi);

	if (visitor == NULL)
		return;
	lws_set_wsi_user(wsi, NULL);
	VisitorForget(visitor);
}

/* A connection was made for its request, which has time limits of its own. */
void
VisitorServed(struct lws *wsi)
{
	Visitor *visitor = lws_wsi_user(wsi);

	if (visitor != NULL)
		WheelRemove(&visitor->late);
}

static void
Kill(Visitor *visitor)
{
	Connection *conn = lws_get_opaque_user_data(visitor->wsi);

	if (conn != NULL)
		ConnKill(conn, LINK_CAUSE_SERVER);
	else
		ConnKillSocket(visitor->wsi);
}

/* Its request is not there, or the answer to it did not go out. */
void
VisitorLate(Visitor *visitor)
{
	if (!visitor->asked)
	{
		gateway.refused++;
		StatsNoteRefusal("timeout");
		if (!lws_is_ssl(visitor->wsi))
			(void) send(lws_get_socket_fd(visitor->wsi), late_answer, sizeof(late_answer) - 1,
						MSG_DONTWAIT | MSG_NOSIGNAL);
	}
	Kill(visitor);
}

/* The client's address, for logs and statistics. */
void
VisitorText(struct lws *wsi, char *text, size_t size)
{
	const Visitor *visitor = lws_wsi_user(wsi);

	if (visitor != NULL && visitor->has_address)
		AddressToText(&visitor->address, text, size);
	else
		snprintf(text, size, "local");
}

/* Is it a loopback address, with nothing between? */
bool
VisitorIsLoopback(struct lws *wsi)
{
	const Visitor *visitor = lws_wsi_user(wsi);

	return visitor != NULL && visitor->has_address && AddressIsLoopback(&visitor->address);
}

/* ---- requests ---- */

/* The proxy says whose request it is: from now on it is that one's. */
static bool
Resolve(Visitor *visitor, Refusal *refusal)
{
	switch (ForwardedAddress(visitor->wsi, &visitor->address))
	{
		case FORWARDED_NONE:
			return true;
		case FORWARDED_FOUND:
			visitor->has_address = true;
			visitor->use = AddressUseTake(&visitor->address);
			return true;
		case FORWARDED_MALFORMED:
			break;
	}
	refusal->status = 400;
	refusal->code = "bad_request";
	refusal->message = "the proxy's header names no address";
	refusal->hint = "The setting changefeed.forwarded_header says which header the proxies of "
					"changefeed.trusted_proxies send.";
	return false;
}

static bool
RefuseRate(Refusal *refusal, int status, const char *code, const char *message, const char *hint,
		   Bucket bucket, uint32_t rate)
{
	static char retry[64];
	uint64_t excess = bucket + Cost(rate) - NowNs() - BURST_NS;

	snprintf(retry, sizeof(retry), "Retry-After: %" PRIu64 "\r\n", excess / 1000000000 + 1);
	refusal->status = status;
	refusal->code = code;
	refusal->message = message;
	refusal->hint = hint;
	refusal->extra = retry;
	return false;
}

/* A request is there, of whatever kind: may its sender make one? */
bool
VisitorCheck(struct lws *wsi, Refusal *refusal)
{
	Visitor *visitor = lws_wsi_user(wsi);
	uint32_t limit = gateway.max_connections_per_address;

	memset(refusal, 0, sizeof(*refusal));
	if (visitor == NULL || visitor->asked)
		return true;
	visitor->asked = true;
	if (visitor->proxy && !Resolve(visitor, refusal))
		return false;
	if (!AddressIsAllowed(visitor))
	{
		refusal->status = 403;
		refusal->code = "address_not_allowed";
		refusal->message = "clients of this address are not allowed";
		refusal->hint = "The settings are changefeed.allowed_addresses and "
						"changefeed.denied_addresses.";
		return false;
	}
	if (limit > 0 && visitor->use != NULL && visitor->use->sockets > limit)
	{
		refusal->status = 429;
		refusal->code = "too_many_connections_of_address";
		refusal->message = "this address has too many connections";
		refusal->hint = "Close some; or raise changefeed.max_connections_per_address.";
		refusal->extra = "Retry-After: 5\r\n";
		return false;
	}
	if (visitor->charged)
		return true;
	if (!AddressHasRoom(visitor))
		return RefuseRate(refusal, 429, "too_many_handshakes", "this address connects too often",
						  "Wait before the next attempt; or raise "
						  "changefeed.max_handshake_rate_per_address.",
						  visitor->use->handshakes, gateway.max_handshake_rate_per_address);
	if (!HandshakeHasRoom(handshakes, gateway.max_handshake_rate))
		return RefuseRate(refusal, 503, "too_many_handshakes",
						  "too many clients connect at this time",
						  "Wait before the next attempt; or raise changefeed.max_handshake_rate.",
						  handshakes, gateway.max_handshake_rate);
	Charge(visitor);
	return true;
}

/* Other lists have come: who is not allowed any more has to go. */
void
VisitorCheckAll(void)
{
	ListNode *node;
	ListNode *next;

	for (node = all.next; node != &all; node = next)
	{
		Visitor *visitor = ListElement(node, Visitor, node);
		Connection *conn;

		next = node->next;
		if (visitor->wsi == NULL || (visitor->proxy && !visitor->asked) ||
			AddressIsAllowed(visitor))
			continue;
		conn = lws_get_opaque_user_data(visitor->wsi);
		if (conn != NULL)
			ConnRefuse(conn, LINK_CAUSE_ADDRESS, LINK_CLOSE_ADDRESS, "42501",
					   "clients of this address are not allowed",
					   "The settings are changefeed.allowed_addresses and "
					   "changefeed.denied_addresses.");
		else
			ConnKillSocket(visitor->wsi);
	}
}
