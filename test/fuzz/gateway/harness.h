/*-------------------------------------------------------------------------
 *
 * harness.h
 *		The gateway in the fuzzer's own process: its other ends.
 *
 * All of the gateway but its sandbox runs here, with libwebsockets and libuv as
 * they are.  The harness is both of its peers: the feed worker at the other end
 * of the link, and clients on a Unix socket.  Time is virtual: the monotonic
 * clock goes on only when the harness says so, so that an input does the same
 * every time and nothing has to be waited for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef FUZZ_GATEWAY_HARNESS_H
#define FUZZ_GATEWAY_HARNESS_H

#include "../fail.h"
#include "http.h"
#include "linkframe.h"

#define MAX_PEERS 8

/* A client. */
typedef struct Peer
{
	int fd; /* -1: none */
	bool ended;
	uint32_t conn; /* the gateway's number; 0: not told */
	Buffer in;
} Peer;

/* The bytes of an input, taken from the front. */
typedef struct Input
{
	const uint8_t *data;
	size_t left;
} Input;

extern uint8_t TakeU8(Input *in);
extern uint16_t TakeU16(Input *in);
extern const uint8_t *TakeBytes(Input *in, size_t *length); /* at most what is left */

/* Bits of the first byte of an input. */
#define WITH_COMPRESSION 1
#define WITH_PROXY		 2 /* the client is a trusted proxy */
#define WITH_FORWARDED	 4 /* and sends Forwarded, not X-Forwarded-For */
#define WITH_COOKIE		 8 /* tokens in the cookie "session" */
#define WITH_ANY_ORIGIN	 16
#define WITH_SMALL_SIZES 32
#define WITH_RATES		 64
#define WITH_LISTS		 128 /* of allowed and denied addresses */

#define ALLOWED_ORIGIN "https://app.example"
#define ALLOWED_HOST   "db.example"

extern LinkFrame *worker; /* the feed worker's end */
extern Peer peers[MAX_PEERS];
extern uint32_t fuzz_max_message;

/* What the gateway says; the payload was found to be well-formed. */
extern void (*on_message)(const LinkMessage *message, uint32_t conn);

extern void HarnessStart(void);
extern void HarnessConfigure(uint8_t bits);
extern Peer *HarnessConnect(void);
extern void HarnessSend(Peer *peer, const void *data, size_t length);
extern void HarnessDisconnect(Peer *peer);

/* Runs the loop until nothing happens any more. */
extern void HarnessTurn(void);
extern void HarnessAdvance(uint32_t ms);

/*
 * What was put on the link.  False: the gateway would have ended, as what came
 * makes no sense.
 */
extern bool HarnessLink(void);

/*
 * After inputs that speak of the link: nothing of them is left on it, TLS is off,
 * and if there may be an open transaction it is ended.
 */
extern void HarnessSettle(bool open_transaction);

/* Everybody leaves, and nothing may be left behind. */
extern void HarnessFinish(void);

/*
 * What a client of a WebSocket has got, from a byte on, is frames, whole and not
 * masked; the last one may be on its way still.  `each` (NULL: nothing) is shown
 * what is in them.
 */
typedef void (*FrameLook)(const unsigned char *payload, size_t length, bool packed);
extern void CheckFrames(const Peer *peer, size_t at, bool compression, FrameLook each);

/* The answer's head, and JSON texts. */
extern bool IsJson(const char *text, size_t length);
extern void CheckAnswer(const char *text, size_t length);

#endif
