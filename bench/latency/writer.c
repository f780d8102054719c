/*-------------------------------------------------------------------------
 *
 * writer.c
 *		Commits at a fixed rate, each transaction with the time at which it was
 *		sent.
 *
 * A transaction is one UPDATE of one row, prepared, outside of BEGIN: it is
 * sent, executed and committed in one round trip.  The clock is read right
 * before it is sent and goes into the row's column sent_us.  The table has the
 * columns id, status and sent_us, and rows with the ids 1 to --rows; they are
 * updated in turn.
 *
 *	writer --conninfo TEXT --table NAME --rate PER_SECOND --count N --out FILE
 *		[--rows 100] [--connections 1]
 *
 * With several connections, each in a thread of its own, transaction i is sent on
 * connection i modulo their number.  The schedule is absolute: a transaction that takes longer than its interval
 * makes the next one late, not rarer.  With rate 0 there is none.  Prints as JSON
 * the CPU time of its backend for a transaction, in microseconds, which has to be
 * on this machine, and transactions per second.  Writes to --out a line for each
 * transaction: sent_us, the microseconds until its COMMIT was answered, and the
 * microseconds by which it was sent behind schedule.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libpq-fe.h>

static int64_t
Now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void
SleepUntil(int64_t us)
{
	struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};

	while (clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

/* CPU time of a process in nanoseconds */
static double
CpuOf(int pid)
{
	char name[64];
	double cpu = 0;
	FILE *file;

	snprintf(name, sizeof(name), "/proc/%d/schedstat", pid);
	file = fopen(name, "r");
	if (file == NULL || fscanf(file, "%lf", &cpu) != 1)
	{
		fprintf(stderr, "writer: could not read %s\n", name);
		exit(1);
	}
	fclose(file);
	return cpu;
}

static void
Require(PGconn *connection, PGresult *result, ExecStatusType status)
{
	if (PQresultStatus(result) != status)
	{
		fprintf(stderr, "writer: %s", PQerrorMessage(connection));
		exit(1);
	}
	PQclear(result);
}

static const char *conninfo;
static const char *table;
static double rate;
static long count;
static long rows = 100;
static long nconnections = 1;
static int64_t (*log_of)[3];
static pthread_barrier_t barrier;
static int64_t start;

typedef struct Writer
{
	pthread_t thread;
	long number;
	double cpu; /* of its backend, nanoseconds */
} Writer;

static void *
Write(void *argument)
{
	Writer *writer = argument;
	PGconn *connection = PQconnectdb(conninfo);
	char sql[512];
	long i;

	if (PQstatus(connection) != CONNECTION_OK)
	{
		fprintf(stderr, "writer: %s", PQerrorMessage(connection));
		exit(1);
	}
	snprintf(sql, sizeof(sql),
			 "UPDATE %s SET status = $1, sent_us = $2::bigint WHERE id = $3::bigint", table);
	Require(connection, PQprepare(connection, "change", sql, 0, NULL), PGRES_COMMAND_OK);
	writer->cpu = CpuOf(PQbackendPID(connection));

	/* Who comes last sets the time at which all begin. */
	if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
		start = Now() + (rate > 0 ? 10000 : 0);
	pthread_barrier_wait(&barrier);

	for (i = writer->number; i < count; i += nconnections)
	{
		int64_t due = rate > 0 ? start + (int64_t) (i * 1e6 / rate) : Now();
		char sent[32];
		char id[32];
		const char *values[3] = {i / rows % 2 == 0 ? "open" : "shipped", sent, id};

		if (rate > 0)
			SleepUntil(due);
		snprintf(id, sizeof(id), "%ld", i % rows + 1);
		log_of[i][0] = Now();
		snprintf(sent, sizeof(sent), "%lld", (long long) log_of[i][0]);
		Require(connection, PQexecPrepared(connection, "change", 3, values, NULL, NULL, 0),
				PGRES_COMMAND_OK);
		log_of[i][1] = Now() - log_of[i][0];
		log_of[i][2] = log_of[i][0] - due;
	}
	writer->cpu = CpuOf(PQbackendPID(connection)) - writer->cpu;
	PQfinish(connection);
	return NULL;
}

int
main(int argc, char **argv)
{
	const char *out_file = NULL;
	FILE *out;
	Writer *writers;
	int64_t end;
	double cpu = 0;
	long i;
	int a;

	for (a = 1; a + 1 < argc; a += 2)
	{
		if (strcmp(argv[a], "--conninfo") == 0)
			conninfo = argv[a + 1];
		else if (strcmp(argv[a], "--table") == 0)
			table = argv[a + 1];
		else if (strcmp(argv[a], "--rate") == 0)
			rate = atof(argv[a + 1]);
		else if (strcmp(argv[a], "--count") == 0)
			count = atol(argv[a + 1]);
		else if (strcmp(argv[a], "--rows") == 0)
			rows = atol(argv[a + 1]);
		else if (strcmp(argv[a], "--connections") == 0)
			nconnections = atol(argv[a + 1]);
		else if (strcmp(argv[a], "--out") == 0)
			out_file = argv[a + 1];
		else
			break;
	}
	if (a != argc || conninfo == NULL || table == NULL || out_file == NULL || rate < 0 ||
		count < 1 || rows < 1 || nconnections < 1)
	{
		fputs("writer: bad arguments; the head of writer.c lists them\n", stderr);
		return 2;
	}

	log_of = calloc((size_t) count, sizeof(*log_of));
	writers = calloc((size_t) nconnections, sizeof(*writers));
	if (log_of == NULL || writers == NULL ||
		pthread_barrier_init(&barrier, NULL, (unsigned) nconnections) != 0)
		return 1;
	for (i = 0; i < nconnections; i++)
	{
		writers[i].number = i;
		if (pthread_create(&writers[i].thread, NULL, Write, &writers[i]) != 0)
		{
			perror("writer: thread");
			return 1;
		}
	}
	for (i = 0; i < nconnections; i++)
	{
		pthread_join(writers[i].thread, NULL);
		cpu += writers[i].cpu;
	}
	end = Now();
	printf("{\"backend_us\":%.3f,\"per_second\":%.1f}\n", cpu / 1000 / (double) count,
		   (double) count * 1e6 / (double) (end - start));

	out = fopen(out_file, "w");
	if (out == NULL)
	{
		perror(out_file);
		return 1;
	}
	for (i = 0; i < count; i++)
		fprintf(out, "%lld %lld %lld\n", (long long) log_of[i][0], (long long) log_of[i][1],
				(long long) log_of[i][2]);
	return fclose(out) == 0 ? 0 : 1;
}
