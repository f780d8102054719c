/*-------------------------------------------------------------------------
 *
 * tcp.h
 *		What the kernel counts for a connection.
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_GATEWAY_TCP_H
#define CHANGEFEED_GATEWAY_TCP_H

#include <stdbool.h>
#include <stdint.h>

extern bool TcpBytesRead(int fd, uint64_t *bytes);
extern bool TcpBytesTaken(int fd, uint64_t *bytes);

#endif /* CHANGEFEED_GATEWAY_TCP_H */
