using System.Security.Cryptography;
using System.Text;

namespace BlockServer.Blockd;

/// <summary>
/// Changes that carry an Idempotency-Key: the same one again, with the same body, is answered what it was answered and not done
/// again. Kept are the last <see cref="KeptMax"/> that were done, until the daemon ends; what was refused may be tried again.
/// Thread-safe.
/// </summary>
internal sealed class IdempotencyKeys
{
    /// <summary>Name of the header.</summary>
    public const string Header = "Idempotency-Key";

    private const int KeptMax = 1000, KeyMax = 128, AnswerBytesMax = 64 << 10;

    private readonly Lock _lock = new();
    private readonly Dictionary<string, Known> _known = new(StringComparer.Ordinal);
    private readonly Queue<string> _order = new();

    /// <summary>Answers a call: by <paramref name="handle"/>, or as the one before with the same key. Throws 400 for a key that cannot be,
    /// 409 while the other is being answered or when its body was another one.</summary>
    public async Task ServeAsync(HttpContext context, ApiCall call, Func<Task> handle)
    {
        string? given = context.Request.Headers[Header];
        // A token is shown once: its answer is not kept, and its name is a key by itself.
        if (given is null || call.Method is "GET" or "HEAD" || call.Parts[0] == "tokens" || call.Parts[^1] is "stream" or "append" or "append-stream")
        {
            await handle();
            return;
        }

        bool fits = given.Length is > 0 and <= KeyMax;
        foreach (char c in given) fits &= c is > ' ' and < '\x7f';
        if (!fits) throw new ApiException(400, "invalid-idempotency-key", $"a key has 1 to {KeyMax} printable ASCII characters", Header);
        using var body = new MemoryStream();
        await context.Request.Body.CopyToAsync(body, context.RequestAborted); // at most a MiB
        body.Position = 0;
        string hash = Convert.ToHexString(SHA256.HashData(body));
        body.Position = 0;
        string key = new StringBuilder(call.Caller.Id).Append(' ').Append(call.Method).Append(' ').Append(context.Request.Path).Append(context.Request.QueryString).Append(' ').Append(given).ToString();
        if (Begin(key, hash) is { } known)
        {
            (context.Response.StatusCode, context.Response.ContentType) = (known.Status, known.ContentType);
            if (known.Answer.Length > 0) await context.Response.Body.WriteAsync(known.Answer, context.RequestAborted);
            return;
        }

        Stream wire = context.Response.Body;
        using var answer = new MemoryStream();
        bool isDone = false;
        try
        {
            (context.Request.Body, context.Response.Body) = (body, answer);
            await handle();
            isDone = answer.Length <= AnswerBytesMax && context.Response.StatusCode is >= 200 and < 300;
        }
        finally
        {
            context.Response.Body = wire;
            End(key, isDone ? new Known(hash, true, context.Response.StatusCode, context.Response.ContentType, answer.ToArray()) : null);
        }

        if (answer.Length > 0) await wire.WriteAsync(answer.ToArray(), context.RequestAborted);
    }

    private Known? Begin(string key, string hash)
    {
        lock (_lock)
        {
            if (!_known.TryGetValue(key, out Known? known))
            {
                _known.Add(key, new Known(hash, false, 0, null, []));
                return null;
            }

            if (known.BodyHash != hash) throw new ApiException(409, "idempotency-key-reused", "this key came with another body; use a new key for another change", Header);
            return known.IsDone ? known : throw new ApiException(409, "request-running", "the same change is being made; try again when that has ended", Header);
        }
    }

    private void End(string key, Known? done)
    {
        lock (_lock)
        {
            if (done is null)
            {
                _known.Remove(key);
                return;
            }

            _known[key] = done;
            _order.Enqueue(key);
            if (_order.Count > KeptMax) _known.Remove(_order.Dequeue());
        }
    }

    private sealed record Known(string BodyHash, bool IsDone, int Status, string? ContentType, byte[] Answer);
}
