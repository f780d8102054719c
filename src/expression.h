/*-------------------------------------------------------------------------
 *
 * expression.h
 *		Reading what has to be one SQL expression.
 *
 * Process: backends and query workers; the feed worker for what a backend has
 * checked.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_EXPRESSION_H
#define CHANGEFEED_EXPRESSION_H

#include "nodes/nodes.h"

/*
 * The only expression in the text, before analysis.  Otherwise an error (42601)
 * that `what`, such as "filter", must be one `kind`, with that hint.
 */
extern Node *
ExpressionParse(const char *what, const char *kind, const char *hint, const char *text);

/*
 * An error context callback; its argument is the text.  Positions in messages
 * then count from its start.
 */
extern void ExpressionErrorCallback(void *text);

#endif /* CHANGEFEED_EXPRESSION_H */
