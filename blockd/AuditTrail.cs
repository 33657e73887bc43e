using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>Takes one call to the audit log, before its answer goes out: every change, and what was refused to somebody.</summary>
internal sealed class AuditTrail
{
    /// <summary>Where a problem's code is noted in a context.</summary>
    public const string CodeKey = "audit-code";

    private readonly AuditLog? _log;
    private readonly HttpContext _context;
    private bool _isWritten;

    public AuditTrail(AuditLog? log, HttpContext context)
    {
        (_log, _context) = (log, context);
        if (log is not null) context.Response.OnStarting(() =>
        {
            Write(_context.Response.StatusCode);
            return Task.CompletedTask;
        });
    }

    /// <summary>Whose token it was; <c>-</c> while that is not known.</summary>
    public string CallerId { get; set; } = "-";

    /// <summary>The call, once it may be made.</summary>
    public ApiCall? Call { get; set; }

    /// <summary>The call has ended, answered or not.</summary>
    public void End()
    {
        // Nobody was there any more to be answered; an answer that is only beginning writes itself.
        if (!_context.Response.HasStarted && _context.RequestAborted.IsCancellationRequested) Write(499);
    }

    private void Write(int status)
    {
        bool isChange = !HttpMethods.IsGet(_context.Request.Method) && !HttpMethods.IsHead(_context.Request.Method);
        bool isRefusal = Call?.WasRefused == true || status is 401 or 403 or 415 or 421 or 429;
        if (_isWritten || _log is null || (!isChange && !isRefusal)) return;
        _isWritten = true;
        _log.Add(new AuditEntry(
            0, TimeProvider.System.GetUtcNow(), CallerId, _context.Connection.RemoteIpAddress?.ToString() ?? "unix", _context.Request.Method,
            _context.Request.Path.Value ?? "", Call?.Subject, status, _context.Items[CodeKey] as string));
    }
}
