/*-------------------------------------------------------------------------
 *
 * main.c
 *		pg_changefeed_gateway: start, loop, end.
 *
 * The feed worker starts us with one end of a socket pair and an empty
 * environment, and tells us over that link what to do.  Start-up is a fixed
 * order: away from the parent's habits (signals, descriptors, limits), then
 * the loop, then lws, which sizes its tables by the limit of descriptors, then
 * the link.  When configuration and a listening socket have come, link.c
 * enters the sandbox and accepting begins.
 *
 * We end when the link ends, when we are told to shut down, or with the feed
 * worker (parent-death signal).
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "gateway.h"

/* More descriptors than this only make lws' tables large. */
#define MAX_DESCRIPTORS 1048576

/* Shutdown: close frames answered until here, then dropped, then the end. */
#define SHUTDOWN_KILL_MS 900

/* Who was told of a pause comes back after so long, to find out. */
#define PAUSE_LEAST_MS	 2000
#define PAUSE_MOST_MS	 10000
#define SHUTDOWN_EXIT_MS 1500

Gateway gateway;

static uv_prepare_t prepare;
static uv_timer_t shutdown_timer;
static uv_signal_t sigterm;
static uint32_t spread; /* a random start for retry_after_ms */

/* ---- the end ---- */

void
GatewayExit(int exit_code)
{
	gateway.exit_code = exit_code;
	uv_stop(&gateway.loop);
}

static void
OnShutdownTimer(uv_timer_t *handle)
{
	static bool again;
	uint32_t position = 0;
	Connection *conn;

	if (again)
	{
		/* Something hangs; nobody should wait for it. */
		_exit(EXIT_DONE);
	}
	again = true;
	while ((conn = ConnNext(&position)) != NULL)
		ConnKill(conn, LINK_CAUSE_SERVER);
	uv_timer_start(handle, OnShutdownTimer, SHUTDOWN_EXIT_MS - SHUTDOWN_KILL_MS, 0);
}

/* Steps of the golden ratio spread any number of values evenly. */
static uint32_t
NextRetry(uint32_t least_ms, uint32_t most_ms)
{
	uint64_t range = (uint64_t) most_ms - least_ms + 1;

	spread += UINT32_C(2654435769);
	return least_ms + (uint32_t) ((range * spread) >> 32);
}

/* `text`: the name of the reason.  What is queued goes out before, or is dropped. */
static void
SayClosing(Connection *conn, const char *text, size_t length, uint32_t retry_ms, bool drop)
{
	Buffer head = {NULL, 0, 0};
	char tail[64];

	if (conn->close_queued)
		return;
	BufferAppendString(&head, "{\"type\":\"closing\",\"reason\":");
	BufferAppendJson(&head, text);
	snprintf(tail, sizeof(tail), ",\"retry_after_ms\":%" PRIu32 "}", retry_ms);
	if (drop)
	{
		QueueDropAll(conn);
		SnapshotStopAll(conn);
		if (conn->http != NULL)
			StreamDropped(conn);
	}
	if (conn->http != NULL)
		StreamClosing(conn, retry_ms);
	QueueAddText(conn, ITEM_TEXT, head.data, head.length, tail, strlen(tail), NULL, 0);
	ConnCloseAfterQueue(conn, 1001, text, length);
	BufferReset(&head, 0);
}

/*
 * Tells every client to come back, each at its own time, and closes.  What was
 * queued as feed is not worth the second that we have; the client resumes.
 */
void
GatewayShutdown(const char *reason, size_t reason_length, uint32_t least_ms, uint32_t most_ms)
{
	uint32_t position = 0;
	char *reason_text;
	Connection *conn;

	if (gateway.ending)
		return;
	gateway.ending = true;
	ListenerStop();
	if (most_ms < least_ms)
		most_ms = least_ms;

	reason_text = GatewayAlloc(reason_length + 1);
	memcpy(reason_text, reason, reason_length);
	reason_text[reason_length] = '\0';
	while ((conn = ConnNext(&position)) != NULL)
	{
		uint32_t retry_ms = NextRetry(least_ms, most_ms);

		if (conn->http != NULL && !StreamIsBegun(conn))
			RequestFail(conn, 503, "shutting_down", "the server is shutting down", NULL);
		else
			SayClosing(conn, reason_text, reason_length, retry_ms, true);
	}
	free(reason_text);

	uv_timer_start(&shutdown_timer, OnShutdownTimer, SHUTDOWN_KILL_MS, 0);
	GatewayConnectionGone();
}

/*
 * What was committed before the pause is sent to whoever reads it in time, but
 * for pages of a snapshot, which the client would not be done with.  Who has asked
 * for a stream is told; a call or a message that is on its way gets its answer.
 */
void
GatewayPause(void)
{
	static const char reason[] = "paused";
	uint32_t position = 0;
	Connection *conn;

	while ((conn = ConnNext(&position)) != NULL)
	{
		if (conn->http == NULL || StreamIsBegun(conn))
		{
			SnapshotStopAll(conn);
			SayClosing(conn, reason, strlen(reason), NextRetry(PAUSE_LEAST_MS, PAUSE_MOST_MS),
					   false);
		}
		else if (StreamIsAsked(conn))
			RequestFail(conn, 503, "paused", "the change feed is paused", PAUSE_HINT);
	}
}

/* The last connection of a shutdown ends it. */
void
GatewayConnectionGone(void)
{
	if (gateway.ending && gateway.open == 0)
		GatewayExit(EXIT_DONE);
}

static void
OnSigterm(uv_signal_t *handle, int number)
{
	(void) handle;
	(void) number;
	GatewayShutdown("shutdown", strlen("shutdown"), 500, 5000);
}

static void
OnPrepare(uv_prepare_t *handle)
{
	(void) handle;
	if (TurnWasFull())
	{
		LinkLook();
		ListenerLook();
	}
	LinkEndTurn();
	ConnEndTurn();
}

/* ---- the start ---- */

static int
ParseArguments(int argc, char **argv)
{
	char *end;
	long fd;

	if (argc == 2 && strcmp(argv[1], "--version") == 0)
	{
		printf(GATEWAY_NAME " (link version %d, libwebsockets %s)\n", LINK_VERSION,
			   lws_get_library_version());
		exit(EXIT_DONE);
	}
	if (argc != 3 || strcmp(argv[1], "--link-fd") != 0)
	{
		fprintf(stderr, "usage: " GATEWAY_NAME " --link-fd N\n"
						"This program is started by the extension pg_changefeed.\n");
		exit(EXIT_FAILED);
	}
	errno = 0;
	fd = strtol(argv[2], &end, 10);
	if (errno != 0 || *end != '\0' || fd < 3 || fd > MAX_DESCRIPTORS)
		GatewayFatal(EXIT_FAILED, "\"%s\" is not a descriptor", argv[2]);
	return (int) fd;
}

static void
ResetSignals(void)
{
	sigset_t none;
	int number;

	for (number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	/* Until the loop runs a SIGTERM has nothing to shut down in order. */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Ends at once if the feed worker has gone before we asked for the signal. */
static void
CheckLinkIsOpen(int fd)
{
	struct pollfd p;
	int type = 0;
	socklen_t length = sizeof(type);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0 || type != SOCK_STREAM)
		GatewayFatal(EXIT_FAILED, "descriptor %d is not a stream socket", fd);
	p.fd = fd;
	p.events = POLLIN;
	p.revents = 0;
	if (poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)) != 0)
		_exit(EXIT_DONE);
}

static void
SetLimits(void)
{
	struct rlimit limit;
	rlim_t n = 1024;
	int fd;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
	{
		n = limit.rlim_max;
		if (n == RLIM_INFINITY || n > MAX_DESCRIPTORS)
			n = MAX_DESCRIPTORS;
		limit.rlim_cur = n;
		if (n < limit.rlim_max || limit.rlim_max == RLIM_INFINITY)
			limit.rlim_max = n;
		if (setrlimit(RLIMIT_NOFILE, &limit) < 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0)
			n = limit.rlim_cur;
	}

	/* A quarter is left for snapshot files and ourselves. */
	gateway.max_sockets = n > 128 ? n - n / 4 - 64 : 32;

	/* Of this server's processes this one is the cheapest to lose. */
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
	{
		if (write(fd, "500", 3) < 0)
			GatewayLog(LEVEL_LOG, "could not set oom_score_adj: %s", strerror(errno));
		close(fd);
	}
}

/* Nothing but the standard three and the link is ours. */
static void
CloseOthers(int link_fd)
{
	if (link_fd > 3)
		close_range(3, (unsigned int) link_fd - 1, 0);
	close_range((unsigned int) link_fd + 1, ~0U, 0);
	fcntl(link_fd, F_SETFD, FD_CLOEXEC);
	fcntl(link_fd, F_SETFL, fcntl(link_fd, F_GETFL) | O_NONBLOCK);
}

static void
StartLoop(void)
{
	if (uv_loop_init(&gateway.loop) != 0)
		GatewayFatal(EXIT_FAILED, "could not make an event loop");
	uv_prepare_init(&gateway.loop, &prepare);
	uv_prepare_start(&prepare, OnPrepare);
	uv_timer_init(&gateway.loop, &shutdown_timer);
	uv_signal_init(&gateway.loop, &sigterm);
	uv_signal_start(&sigterm, OnSigterm, SIGTERM);
	WalkStart();
	ConnStart();
	HeartbeatStart();
	RequestStart();
	VisitorStart();
	ThrottleStart();
}

#ifdef GATEWAY_DEBUG
#ifdef __SANITIZE_ADDRESS__
/*
 * The environment, if there is one, comes before this.  A leak checker needs calls
 * that the sandbox forbids, and so does a core of all that memory.
 */
extern const char *__asan_default_options(void);

const char *
__asan_default_options(void)
{
	return "detect_leaks=0:abort_on_error=1:disable_coredump=1";
}
#endif

static void
CloseHandle(uv_handle_t *handle, void *arg)
{
	(void) arg;
	if (!uv_is_closing(handle))
		uv_close(handle, NULL);
}
#endif

/*
 * The kernel takes everything back faster than we could; only a build that
 * looks for leaks and late callbacks ends in order.
 */
static void
CleanUp(void)
{
#ifdef GATEWAY_DEBUG
	uint32_t position = 0;
	Connection *conn;

	while ((conn = ConnNext(&position)) != NULL)
		ConnKill(conn, LINK_CAUSE_SERVER);
	LinkStop();
	HeartbeatStop();
	ServerDestroy();
	uv_walk(&gateway.loop, CloseHandle, NULL);
	uv_run(&gateway.loop, UV_RUN_NOWAIT);
	LinkFrameDestroy(gateway.link);
	exit(gateway.exit_code);
#endif
}

int
main(int argc, char **argv)
{
	int fd = ParseArguments(argc, argv);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	ResetSignals();
	CheckLinkIsOpen(fd);
	CloseOthers(fd);
	SetLimits();
	setenv("TZ", "UTC0", 1);
	tzset();
	SandboxPrepare();
	if (getrandom(&spread, sizeof(spread), GRND_NONBLOCK) < 0)
		spread = (uint32_t) getpid();

	StartLoop();
	ServerCreate();
	LinkStart(fd);

	uv_run(&gateway.loop, UV_RUN_DEFAULT);

	/* LINK_CLOSED of the last ones, if the feed worker still listens. */
	if (gateway.link != NULL)
		LinkFrameFlush(gateway.link);
	CleanUp();
	_exit(gateway.exit_code);
}
