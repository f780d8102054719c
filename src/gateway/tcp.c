/*-------------------------------------------------------------------------
 *
 * tcp.c
 *		What the kernel counts for a connection.
 *
 * A file of its own, because the kernel's header knows more than the C library's,
 * which libwebsockets includes, and the two cannot be used together.
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "tcp.h"

/* Bytes that came and were read; false: not a TCP connection. */
bool
TcpBytesRead(int fd, uint64_t *bytes)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);
	int unread = 0;

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0 ||
		length < offsetof(struct tcp_info, tcpi_bytes_received) + sizeof(info.tcpi_bytes_received))
		return false;
	if (ioctl(fd, FIONREAD, &unread) < 0)
		unread = 0;
	*bytes = info.tcpi_bytes_received - (uint64_t) unread;
	return true;
}

/* Bytes that the other side has taken; false: not a TCP connection. */
bool
TcpBytesTaken(int fd, uint64_t *bytes)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0 ||
		length < offsetof(struct tcp_info, tcpi_bytes_acked) + sizeof(info.tcpi_bytes_acked))
		return false;
	*bytes = info.tcpi_bytes_acked;
	return true;
}
