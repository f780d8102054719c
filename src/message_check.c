/*-------------------------------------------------------------------------
 *
 * message_check.c
 *		What a message to subscribers may be like, whoever sends it.
 *
 * Process: any.  Memory: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "message.h"

const char *
MessageEventProblem(const char *event, Size length)
{
	Size i;

	if (length == 0)
		return "the name of the event is empty";
	if (length > MESSAGE_EVENT_MAX)
		return "the name of the event is longer than 128 bytes";
	for (i = 0; i < length; i++)
		if ((unsigned char) event[i] < 0x20 || event[i] == 0x7f)
			return "the name of the event has a control character";
	return NULL;
}
