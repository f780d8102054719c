/*-------------------------------------------------------------------------
 *
 * server.c
 *		The libwebsockets context and its one callback.
 *
 * lws parses HTTP and WebSocket frames, does TLS, and keeps the rest of a write
 * that the socket did not take.  Off: its own listening, compression,
 * HTTP/2 (self-framed writes would corrupt it), and its validity timers, which
 * heartbeat.c replaces.
 *
 * Process: gateway.  Memory: lws keeps a pointer to our Connection as the
 * "opaque user data" of its connection; NULL while that is still HTTP.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "gateway.h"

/*
 * A piece of a client's message; small, because every connection has one.  4.3.0 to
 * 4.3.3 give a connection up that needs ten of them for one record of TLS (16 kB).
 */
#if LWS_LIBRARY_VERSION_NUMBER >= 4003000 && LWS_LIBRARY_VERSION_NUMBER < 4003004
#define RX_BUFFER 2048
#else
#define RX_BUFFER 256
#endif

/* Larger writes would be cut to this and the rest copied. */
#define TX_PACKET (4 * 1024 * 1024)

/* Longer than any of ours: visitor.c keeps the time. */
#define HANDSHAKE_SECONDS 70

/* It may not be empty: lws asserts that when it answers by itself. */
#define SERVER_NAME "changefeed"
/* Lines of lws that we pass on, at most, in ten seconds. */
#define LOG_LINES	10

static int
OnEvent(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t length);

static const struct lws_protocols protocols[] = {{
													 .name = GATEWAY_SUBPROTOCOL,
													 .callback = OnEvent,
													 .rx_buffer_size = RX_BUFFER,
													 .tx_packet_size = TX_PACKET,
												 },
												 {
													 .name = NULL,
												 }};

/* Zero: no validity checks. */
static const lws_retry_bo_t no_retry;

/*
 * Most of what lws reports is caused by clients; a flood of that must not
 * become a flood in the server's log.
 */
static void
OnLog(int level, const char *line)
{
	static uint64_t window;
	static int lines;
	uint64_t now = uv_hrtime() / 1000000000;

	if (now - window >= 10)
	{
		window = now;
		lines = 0;
	}
	if (++lines > LOG_LINES)
		return;
	GatewayLog(level == LLL_ERR ? LEVEL_WARNING : LEVEL_LOG, "libwebsockets: %.*s",
			   (int) strcspn(line, "\n"), line);
}

/* A set of connections that lws treats alike; we accept for it ourselves. */
struct lws_vhost *
ServerMakeVhost(const char *name, uint64_t options)
{
	struct lws_context_creation_info info;
	struct lws_vhost *vhost;

	memset(&info, 0, sizeof(info));
	info.vhost_name = name;
	info.port = CONTEXT_PORT_NO_LISTEN_SERVER;
	info.options = options;
	info.protocols = protocols;
	info.extensions = compress_extensions;
	info.alpn = "http/1.1";
	info.timeout_secs = HANDSHAKE_SECONDS;
	info.keepalive_timeout = 30;
	info.retry_and_idle_policy = &no_retry;
	info.server_string = SERVER_NAME;
	vhost = lws_create_vhost(gateway.lws, &info);
	if (vhost == NULL)
		GatewayFatal(EXIT_FAILED, "could not create the libwebsockets vhost \"%s\"", name);
	return vhost;
}

void
ServerCreate(void)
{
	struct lws_context_creation_info info;
	void *loops[1];
	unsigned char hash[20];

	lws_set_log_level(LLL_ERR | LLL_WARN, OnLog);

	loops[0] = &gateway.loop;
	memset(&info, 0, sizeof(info));
	/* OpenSSL's configuration is read now or never. */
	info.options = LWS_SERVER_OPTION_LIBUV | LWS_SERVER_OPTION_EXPLICIT_VHOSTS |
				   LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
	info.foreign_loops = loops;
	info.port = CONTEXT_PORT_NO_LISTEN_SERVER;
	info.gid = (gid_t) -1;
	info.uid = (uid_t) -1;
	info.timeout_secs = HANDSHAKE_SECONDS;
	info.keepalive_timeout = 30;
	info.max_http_header_data = 16384;
	info.max_http_header_pool = 4096;
	info.pt_serv_buf_size = 16384;
	info.retry_and_idle_policy = &no_retry;
	info.server_string = SERVER_NAME;
	gateway.lws = lws_create_context(&info);
	if (gateway.lws == NULL)
		GatewayFatal(EXIT_FAILED, "could not create the libwebsockets context "
								  "(is the package libwebsockets-evlib-uv installed?)");

	gateway.vhost = ServerMakeVhost("default", 0);

	/* The handshake needs SHA-1; let its library open what it wants now. */
	lws_SHA1((const unsigned char *) "", 0, hash);
}

void
ServerDestroy(void)
{
	int i;

	lws_context_destroy(gateway.lws);
	/* Closing is asynchronous under libuv. */
	for (i = 0; i < 50; i++)
		uv_run(&gateway.loop, UV_RUN_NOWAIT);
}

/* The WebSocket is open: the headers are still there, for the last time. */
static int
Established(struct lws *wsi)
{
	size_t length;
	bool is_cookie;
	char *token = HttpToken(wsi, &length, &is_cookie);

	lws_set_opaque_user_data(wsi, ConnOpen(wsi, token, length));
	explicit_bzero(token, length);
	return 0;
}

static void
Gone(struct lws *wsi)
{
	Connection *conn = lws_get_opaque_user_data(wsi);

	if (conn == NULL)
		return;
	lws_set_opaque_user_data(wsi, NULL);
	ConnGone(conn);
}

static int
OnEvent(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t length)
{
	Connection *conn;

	switch (reason)
	{
		case LWS_CALLBACK_WSI_CREATE:
			gateway.open_sockets++;
			BalanceUpdate();
			return 0;
		case LWS_CALLBACK_WSI_DESTROY:
			gateway.open_sockets--;
			BalanceUpdate();
			Gone(wsi);
			VisitorGone(wsi);
			return 0;

		case LWS_CALLBACK_OPENSSL_LOAD_EXTRA_SERVER_VERIFY_CERTS:
			return TlsSetUp(user) ? 0 : -1;

		case LWS_CALLBACK_HTTP:
			return HttpRequest(wsi, in, length);
		case LWS_CALLBACK_HTTP_CONFIRM_UPGRADE:
			CompressForget();
			return HttpCheckUpgrade(wsi);
		case LWS_CALLBACK_HTTP_BODY:
			conn = lws_get_opaque_user_data(wsi);
			return conn != NULL ? RequestBody(conn, in, length) : -1;
		case LWS_CALLBACK_HTTP_BODY_COMPLETION:
			return lws_get_opaque_user_data(wsi) != NULL ? 0 : -1;
		case LWS_CALLBACK_HTTP_WRITEABLE:
			conn = lws_get_opaque_user_data(wsi);
			if (conn != NULL)
				RequestWriteable(conn);
			return 0;
		case LWS_CALLBACK_CLOSED_HTTP:
			Gone(wsi);
			return 0;

		case LWS_CALLBACK_RAW_ADOPT:
		case LWS_CALLBACK_RAW_RX:
			return -1; /* the method CONNECT */

		case LWS_CALLBACK_CONFIRM_EXTENSION_OKAY:
			return CompressIsWanted(wsi) ? 0 : 1;
		case LWS_CALLBACK_ADD_HEADERS:
			return CompressAnswer(wsi, in) ? 0 : -1;

		case LWS_CALLBACK_ESTABLISHED:
			return Established(wsi);
		case LWS_CALLBACK_RECEIVE:
			conn = lws_get_opaque_user_data(wsi);
			if (conn == NULL)
				return -1;
			ConnReceive(conn, in, length);
			return 0;
		case LWS_CALLBACK_RECEIVE_PONG:
			conn = lws_get_opaque_user_data(wsi);
			if (conn != NULL)
				ConnHeard(conn);
			return 0;
		case LWS_CALLBACK_SERVER_WRITEABLE:
			conn = lws_get_opaque_user_data(wsi);
			if (conn == NULL)
				return 0;
			/* It takes what we send, if slowly: that is a sign of life too. */
			ConnHeard(conn);
			QueueFlush(conn);
			return 0;
		case LWS_CALLBACK_WS_PEER_INITIATED_CLOSE:
			conn = lws_get_opaque_user_data(wsi);
			return conn != NULL ? ConnPeerCloses(conn) : 0;
		case LWS_CALLBACK_CLOSED:
			Gone(wsi);
			return 0;

		default:
			return 0;
	}
}
