/*-------------------------------------------------------------------------
 *
 * main.c
 *		The load generator: subscribes many clients, publishes, and verifies
 *		and times what comes.
 *
 * Commands come as JSON objects, one in a line, on stdin; what happens is told
 * in the same way on stdout. bench/lib/load.mjs is the other end.
 *
 *	{"do":"open","group":NAME,"protocol":"changefeed|text|nats|mqtt","port":N,
 *	 "connections":N,"channel":"feed:{i}","channels":N,"first":1,...}
 *		conn.c, GroupOpen(); -> {"event":"open",...} when all are ready
 *	{"do":"reopen","group":NAME,"how":"drop|lost","from":BOOL}
 *	{"do":"close","group":NAME}
 *	{"do":"publish","via":"pg|line|nats|mqtt|http",...}
 *		publish.c; -> {"event":"published",...} when everybody has everything
 *	{"do":"finish"}		publishes nothing more
 *	{"do":"reset"}		forgets what was measured
 *	{"do":"stats"}		-> {"event":"stats",...}
 *	{"do":"samples","file":NAME}	"keep":true begins to keep them
 *	{"do":"quit"}
 *
 * What must not happen, a message missing, twice or out of order, or a
 * connection lost, is {"event":"wrong",...}; then the exit status is 1.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "load.h"

#define MAX_WRONG_TOLD 10

int poll_fd;
int64_t now_us;
Group *groups;

static Buffer input;
static int timer_fd;
static char publisher_mark; /* its address stands for the publisher in epoll */
static char input_mark;
static char timer_mark;
void *const publisher_event = &publisher_mark;

void
Die(const char *what)
{
	fprintf(stderr, "load: %s%s%s\n", what, errno != 0 ? ": " : "",
			errno != 0 ? strerror(errno) : "");
	exit(1);
}

void
Tell(json_t *event)
{
	char *text = json_dumps(event, JSON_COMPACT);

	puts(text);
	fflush(stdout);
	free(text);
	json_decref(event);
}

void
Wrong(const char *format, ...)
{
	char text[1024];
	va_list args;
	char *at;

	if (++wrongs > MAX_WRONG_TOLD)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	/* Of others' bytes, JSON takes only those that are ASCII for sure. */
	for (at = text; *at != '\0'; at++)
		if (*at < 0x20 || *at > 0x7e)
			*at = '?';
	Tell(json_pack("{ss ss}", "event", "wrong", "message", text));
}

int64_t
Now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void *
Allocate(void *old, size_t size)
{
	void *memory = realloc(old, size);

	if (memory == NULL)
		Die("out of memory");
	return memory;
}

void
BufferAppend(Buffer *b, const char *data, size_t length)
{
	if (b->length + length > b->room)
	{
		b->room = (b->length + length) * 2;
		b->data = Allocate(b->data, b->room);
	}
	memcpy(b->data + b->length, data, length);
	b->length += length;
}

void
BufferFree(Buffer *b)
{
	free(b->data);
	memset(b, 0, sizeof(Buffer));
}

const char *
Expand(const char *pattern, uint32_t number, char *out, size_t size)
{
	const char *mark = strstr(pattern, "{i}");

	if (mark == NULL)
		return pattern;
	snprintf(out, size, "%.*s%u%s", (int) (mark - pattern), pattern, number, mark + 3);
	return out;
}

const char *
Text(json_t *command, const char *name, const char *otherwise)
{
	json_t *value = json_object_get(command, name);

	return json_is_string(value) ? json_string_value(value) : otherwise;
}

int64_t
Number(json_t *command, const char *name, int64_t otherwise)
{
	json_t *value = json_object_get(command, name);

	return json_is_number(value) ? (int64_t) json_number_value(value) : otherwise;
}

bool
Flag(json_t *command, const char *name, bool otherwise)
{
	json_t *value = json_object_get(command, name);

	return json_is_boolean(value) ? json_is_true(value) : otherwise;
}

/* Returns false if this was the last one. */
static bool
Command(const char *line, size_t length)
{
	json_error_t error;
	json_t *command = json_loadb(line, length, 0, &error);
	const char *what;

	errno = 0;
	if (command == NULL)
		Die(error.text);
	what = Text(command, "do", "");
	if (strcmp(what, "quit") == 0)
		return false;
	if (strcmp(what, "open") == 0)
		GroupOpen(command);
	else if (strcmp(what, "reopen") == 0)
		GroupReopen(command);
	else if (strcmp(what, "close") == 0)
		GroupClose(command);
	else if (strcmp(what, "publish") == 0)
		Publish(command);
	else if (strcmp(what, "finish") == 0)
		PublishFinish();
	else if (strcmp(what, "reset") == 0)
		StatsReset();
	else if (strcmp(what, "stats") == 0)
		Tell(json_pack("{ss so}", "event", "stats", "stats", StatsJson()));
	else if (strcmp(what, "samples") == 0)
	{
		if (Text(command, "file", NULL) != NULL)
			SamplesWrite(Text(command, "file", NULL));
		keep_samples = Flag(command, "keep", false);
		Tell(json_pack("{ss}", "event", "samples"));
	}
	else
		Die("unknown command");
	json_decref(command);
	return true;
}

/* Returns false at the end. */
static bool
ReadCommands(void)
{
	char bytes[65536];
	ssize_t n = read(0, bytes, sizeof(bytes));
	size_t done = 0;
	char *end;
	bool goes_on = true;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (n <= 0)
		return false;
	BufferAppend(&input, bytes, (size_t) n);
	while (goes_on && (end = memchr(input.data + done, '\n', input.length - done)) != NULL)
	{
		size_t length = (size_t) (end - input.data) - done;

		if (length > 0)
			goes_on = Command(input.data + done, length);
		done = (size_t) (end - input.data) + 1;
	}
	memmove(input.data, input.data + done, input.length - done);
	input.length -= done;
	return goes_on;
}

/* The timer has microseconds, where epoll_wait() has milliseconds. */
static void
SetTimer(void)
{
	static int64_t is_set;
	int64_t a = GroupsNextTime();
	int64_t b = PublishNextTime();
	int64_t at = a == 0 || (b != 0 && b < a) ? b : a;
	struct itimerspec t = {.it_value = {at / 1000000, at % 1000000 * 1000}};

	if (at == is_set)
		return;
	is_set = at;
	timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
}

int
main(void)
{
	struct epoll_event events[1024];
	struct epoll_event mark = {.events = EPOLLIN};
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
	{
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	poll_fd = epoll_create1(EPOLL_CLOEXEC);
	timer_fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
	if (poll_fd < 0 || timer_fd < 0)
		Die("could not start");
	mark.data.ptr = &input_mark;
	if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, 0, &mark) != 0)
		Die("stdin cannot be polled: use a pipe");
	mark.data.ptr = &timer_mark;
	epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &mark);
	StatsReset();
	Tell(json_pack("{ss sI}", "event", "started", "descriptors", (json_int_t) files.rlim_max));

	for (;;)
	{
		int64_t began;
		int n;
		int i;

		GroupsAdvance();
		PublishAdvance();
		SetTimer();
		n = epoll_wait(poll_fd, events, 1024, -1);
		if (n < 0 && errno != EINTR)
			Die("epoll_wait");
		began = Now();
		for (i = 0; i < n; i++)
		{
			void *what = events[i].data.ptr;

			if (what == &input_mark)
			{
				if (!ReadCommands())
					return wrongs == 0 ? 0 : 1;
			}
			else if (what == &timer_mark)
			{
				uint64_t ignored;

				if (read(timer_fd, &ignored, sizeof(ignored)) < 0 && errno != EAGAIN)
					Die("timer");
			}
			else if (what == &publisher_mark)
				PublishEvent(events[i].events);
			else
				ConnEvent(what, events[i].events);
		}
		HistogramAdd(&turn_us, Now() - began);
	}
}
