/*-------------------------------------------------------------------------
 *
 * tests.h
 *		The groups of tests; see gateway_test.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GATEWAY_TESTS_H
#define GATEWAY_TESTS_H

#include "harness.h"

/* test_link.c */
extern void TestLinkFrame(void);

/* test_http.c */
extern long StatusField(const char *name);
extern void TestStart(void);
extern void TestHttp(void);
extern void TestUpgrade(void);
extern void TestOddities(void);
extern void TestNoise(void);
extern void TestLimit(void);

/* test_sandbox.c */
extern void TestSandbox(void);

/* test_messages.c */
extern void TestMessages(void);
extern void TestPings(void);
extern void TestTimeouts(void);
extern void TestClosing(void);
extern void TestDeafWorker(void);
extern void TestShutdown(void);

/* test_request.c */
extern void TestRequests(void);

/* test_compress.c */
extern void TestCompression(void);
/* test_stream.c */
extern void TestStreams(void);
extern void TestPause(void);

/* test_limits.c */
extern void TestProxies(void);
extern void TestAddresses(void);
extern void TestPerAddress(void);
extern void TestHandshakeRates(void);
extern void TestSlowRequests(void);
extern void TestFloods(void);
extern void TestArrivals(void);
extern void TestTurns(void);

/* test_fanout.c */
extern void TestFanout(void);
extern void TestParts(void);
extern void TestPressure(void);
extern void TestPacing(void);
extern void TestSnapshots(void);
extern void TestMany(void);
extern Client *OpenStalled(void); /* does not read */

/* test_shared.c */
extern void TestShared(void);
extern void TestSharedMemory(void);

/* test_txmessages.c */
extern void TestTxMessages(void);
extern void TestCastPressure(void);

/* test_http.c: what the other tests of HTTP use, too */
extern bool StatusIs(const char *answer, int status);
extern bool Contains(const char *answer, const char *text);
extern long SpentTicks(uint64_t ms);

#endif /* GATEWAY_TESTS_H */
