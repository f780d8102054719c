/*-------------------------------------------------------------------------
 *
 * stats.c
 *		What the load generator measures, of others and of itself.
 *
 * Of itself: its CPU time as a share of the time that has passed; how long a
 * turn of its loop takes, which is by how much a timestamp may be late; and, for
 * every 64th connection, the time between the kernel's receipt of bytes and
 * their being read (SO_TIMESTAMPNS).
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "load.h"

Histogram latency_us;
Histogram turn_us;
Histogram lag_us;
uint64_t deliveries;
uint64_t delivered_bytes;
uint64_t wrongs;
bool keep_samples;

static int64_t (*samples)[2];
static size_t nsamples;
static size_t samples_room;

static int64_t began_us;
static double began_cpu;

static double
CpuMicroseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

void
HistogramAdd(Histogram *h, int64_t value)
{
	uint64_t v = value < 0 ? 0 : (uint64_t) value;
	size_t at;

	if (v < HISTOGRAM_SUB)
		at = v;
	else
	{
		int shift = 63 - __builtin_clzll(v) - 6;

		at = (size_t) (shift + 1) * HISTOGRAM_SUB + ((v >> shift) - HISTOGRAM_SUB);
		if (at >= HISTOGRAM_SIZE)
			at = HISTOGRAM_SIZE - 1;
	}
	h->counts[at]++;
	h->total++;
	h->sum += (double) value;
	if (h->total == 1 || value > h->max)
		h->max = value;
}

static double
Quantile(const Histogram *h, double q)
{
	uint64_t rank = (uint64_t) (q * (double) h->total);
	uint64_t seen = 0;
	size_t i;

	if (rank >= h->total)
		rank = h->total - 1;
	for (i = 0; i < HISTOGRAM_SIZE; i++)
	{
		seen += h->counts[i];
		if (seen > rank)
		{
			double middle;

			if (i < HISTOGRAM_SUB)
				return (double) i;
			middle = (double) ((HISTOGRAM_SUB + i % HISTOGRAM_SUB) << (i / HISTOGRAM_SUB - 1)) +
					 (double) (1ull << (i / HISTOGRAM_SUB - 1)) / 2;
			return middle > (double) h->max ? (double) h->max : middle;
		}
	}
	return (double) h->max;
}

json_t *
HistogramJson(const Histogram *h)
{
	if (h->total == 0)
		return json_null();
	return json_pack("{sI sf sf sf sf sI sf}", "count", (json_int_t) h->total, "p50",
					 Quantile(h, 0.5), "p90", Quantile(h, 0.9), "p99", Quantile(h, 0.99), "p999",
					 Quantile(h, 0.999), "max", (json_int_t) h->max, "mean",
					 h->sum / (double) h->total);
}

void
StatsReset(void)
{
	memset(&latency_us, 0, sizeof(Histogram));
	memset(&turn_us, 0, sizeof(Histogram));
	memset(&lag_us, 0, sizeof(Histogram));
	deliveries = 0;
	delivered_bytes = 0;
	nsamples = 0;
	began_us = Now();
	began_cpu = CpuMicroseconds();
}

json_t *
StatsJson(void)
{
	double elapsed = (double) (Now() - began_us);
	double cpu = CpuMicroseconds() - began_cpu;

	return json_pack("{sI sI sf sI so s{sf sf so so}}", "deliveries", (json_int_t) deliveries,
					 "bytes", (json_int_t) delivered_bytes, "us", elapsed, "wrong",
					 (json_int_t) wrongs, "latency_us", HistogramJson(&latency_us), "generator",
					 "cpu_us", cpu, "share", elapsed > 0 ? cpu / elapsed : 0, "turn_us",
					 HistogramJson(&turn_us), "lag_us", HistogramJson(&lag_us));
}

void
SampleAdd(int64_t sent_us, int64_t latency)
{
	if (nsamples == samples_room)
	{
		samples_room = samples_room == 0 ? 65536 : samples_room * 2;
		samples = Allocate(samples, samples_room * sizeof(*samples));
	}
	samples[nsamples][0] = sent_us;
	samples[nsamples++][1] = latency;
}

void
SamplesWrite(const char *file)
{
	FILE *out = fopen(file, "w");
	size_t i;

	if (out == NULL)
		Die(file);
	for (i = 0; i < nsamples; i++)
		fprintf(out, "%lld %lld\n", (long long) samples[i][0], (long long) samples[i][1]);
	if (fclose(out) != 0)
		Die(file);
}
