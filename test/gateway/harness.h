/*-------------------------------------------------------------------------
 *
 * harness.h
 *		What the tests of the gateway are written with.
 *
 * The test program plays both neighbours of the gateway: the feed worker, on
 * the other end of the link, and the clients, on plain sockets with hand-made
 * handshakes and frames.  Everything waits for a condition with a limit; no
 * test relies on a pause being long enough.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GATEWAY_HARNESS_H
#define GATEWAY_HARNESS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include "linkframe.h"
#include "wire.h"

/* How long anything may take before a test gives up on it. */
#define LIMIT_MS 15000

/* ---- TAP ---- */

extern void Ok(bool condition, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern void
Is(uint64_t got, uint64_t expected, const char *format, ...) __attribute__((format(printf, 3, 4)));
extern void IsText(const char *got, const char *expected, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
extern void Note(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern void Die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
extern int FinishTests(void);

/* ---- the gateway and the link ---- */

typedef struct Settings
{
	uint32_t max_connections;
	uint32_t send_buffer;
	uint32_t heartbeat_ms;
	uint32_t connect_timeout_ms;
	uint32_t max_message;
	uint32_t max_frame;
	const char *origins[4]; /* up to the first NULL */
	const char *hosts[4];
	const char *cookie; /* may be NULL */
	bool compression;
	uint32_t max_connections_per_address;
	uint32_t max_handshake_rate;
	uint32_t max_handshake_rate_per_address;
	uint32_t max_message_rate;
	uint64_t max_receive_rate;
	uint32_t handshake_timeout_ms;
	bool forwarded;
	bool paused;
	const char *proxies[4];
	const char *allowed[4];
	const char *denied[4];
} Settings;

/* A message of the gateway, kept until a test takes it. */
typedef struct Kept
{
	struct Kept *next;
	LinkType type;
	size_t length;
	char data[];
} Kept;

typedef struct Worker
{
	pid_t pid;
	LinkFrame *link;
	bool link_ended;
	bool deaf; /* does not read the link */
	uint16_t port;
	Kept *first;
	Kept *last;
} Worker;

extern Worker worker;

extern Settings DefaultSettings(void);
extern void StartGateway(const Settings *settings);
extern int StopGateway(void); /* closes the link; its exit status */
extern int WaitExit(void);
extern void SendConfig(const Settings *settings);
extern void Step(int timeout_ms);
extern bool Has(LinkType type, uint32_t conn);
extern Kept *Take(LinkType type, uint32_t conn); /* waits; 0: any */
extern int CountKept(LinkType type);
extern void DropKept(void);

/* It does nothing more until SIGCONT. */
extern void HoldGateway(void);
extern uint64_t NowMs(void);

extern void SendText(uint32_t conn, const char *text);
extern void SendSynced(uint32_t conn, const char *text);
extern void SendIdentity(uint32_t conn, const char *tag);
extern void SendClose(uint32_t conn, uint16_t code, const char *reason);
extern void SendMark(uint32_t conn, uint32_t mark);
extern void SendPlain(LinkType type, const uint32_t *numbers, int n);
extern void SendPing(const uint32_t *conns, uint32_t n, const char *before, const char *after);
extern void TxBegin(uint64_t number, uint8_t flags);
extern void TxFragment(const uint32_t *conns, uint32_t n, const char *json);
extern void TxAudience(const uint32_t *conns, uint32_t n);
extern void TxShared(uint32_t audience, const char *json);
extern void TxEnd(void);
extern void SendTransaction(uint64_t number, uint8_t flags, const uint32_t *conns, uint32_t n,
							const char *json);
extern void SendAsset(const char *path, const char *type, const char *etag,
					  const char *body, size_t length);
extern void SendPaths(const char *const *texts, const uint8_t *methods, uint32_t n);
extern void SendResponse(uint32_t conn, uint16_t status, const char *type, const char *headers,
						 const char *body, size_t length);
extern void
SendSnapshot(uint32_t conn, uint32_t sub, int fd, const char *const *prefixes, uint32_t n);
extern void SendShutdown(const char *reason, uint32_t least, uint32_t most);

/* ---- clients ---- */

typedef struct Client
{
	int fd;
	uint32_t conn;
	bool packs; /* permessage-deflate was negotiated */
	char *in;	/* received, not yet taken */
	size_t length;
	size_t capacity;
	bool ended;
	struct Client *next_gone;
} Client;

typedef struct Frame
{
	uint8_t opcode; /* 0 when the connection ended instead */
	bool packed;	/* it was compressed; the text is not */
	uint16_t close_code;
	size_t length;
	char *text; /* NUL-terminated, valid until the next frame */
} Frame;

#define OPCODE_TEXT	  1
#define OPCODE_BINARY 2
#define OPCODE_CLOSE  8
#define OPCODE_PING	  9
#define OPCODE_PONG	  10

extern Client *Connect(void);
extern Client *ConnectSmall(int receive_buffer);
extern void Disconnect(Client *client); /* its number stays readable */
extern void SendRaw(Client *client, const void *data, size_t length);
extern bool TrySendRaw(Client *client, const void *data, size_t length);
extern void ReceiveSome(Client *client); /* waits for more, or its end */
extern const char *ReadHttp(Client *client); /* a whole answer */
extern const char *Request(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern const char *Handshake(Client *client, const char *path, const char *headers);
extern Client *OpenSocket(void); /* upgraded, with LINK_OPEN taken */
extern Client *OpenIdentified(void);
extern Client *OpenPacking(void); /* as that, with permessage-deflate */
extern void SendFrame(Client *client, uint8_t first_byte, const void *data, size_t length);
extern void SendMessage(Client *client, const char *text);
extern Frame ReadFrame(Client *client);
extern bool HasData(Client *client);
extern size_t BuildFrame(char *buffer, uint8_t first_byte, const void *data, size_t length);

#endif /* GATEWAY_HARNESS_H */
