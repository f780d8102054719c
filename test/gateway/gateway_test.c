/*-------------------------------------------------------------------------
 *
 * gateway_test.c
 *		Tests of the gateway program: one group per concern, TAP output.
 *
 * Groups can be named on the command line; without arguments all run.  Each
 * group starts a gateway of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "tests.h"

static const struct
{
	const char *name;
	void (*run)(void);
} groups[] = {
	{"link", TestLinkFrame},	{"start", TestStart},		  {"http", TestHttp},
	{"upgrade", TestUpgrade},	{"oddities", TestOddities},	  {"noise", TestNoise},
	{"messages", TestMessages}, {"fanout", TestFanout},		  {"parts", TestParts}, {"shared", TestShared},
	{"shared_memory", TestSharedMemory},
	{"pings", TestPings},		{"timeouts", TestTimeouts},	  {"pressure", TestPressure},
	{"pacing", TestPacing},		{"snapshots", TestSnapshots}, {"closing", TestClosing},
	{"limit", TestLimit},		{"deaf", TestDeafWorker},	  {"many", TestMany},
	{"shutdown", TestShutdown}, {"requests", TestRequests}, {"streams", TestStreams},
	{"pause", TestPause},
	{"compression", TestCompression},
	{"txmessages", TestTxMessages}, {"casts", TestCastPressure},
	{"proxies", TestProxies}, {"addresses", TestAddresses}, {"per_address", TestPerAddress}, {"rates", TestHandshakeRates}, {"slow", TestSlowRequests}, {"floods", TestFloods}, {"sandbox", TestSandbox}, {"arrivals", TestArrivals}, {"turns", TestTurns},
};

int
main(int argc, char **argv)
{
	size_t i;
	int j;

	for (i = 0; i < sizeof(groups) / sizeof(groups[0]); i++)
	{
		bool wanted = argc < 2;

		for (j = 1; j < argc; j++)
			wanted = wanted || strcmp(argv[j], groups[i].name) == 0;
		if (!wanted)
			continue;
		Note("%s", groups[i].name);
		groups[i].run();
	}
	return FinishTests();
}
