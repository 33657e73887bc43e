using System.Collections.Concurrent;

namespace BlockServer.Blockd;

/// <summary>The calls of the admin API that are being answered, and whose they are. Thread-safe.</summary>
internal sealed class ApiCalls
{
    private readonly ConcurrentDictionary<HttpContext, string> _calls = [];

    /// <summary>A call begins.</summary>
    public void Enter(HttpContext context, string callerId) => _calls[context] = callerId;

    /// <summary>It has been answered.</summary>
    public void Leave(HttpContext context) => _calls.TryRemove(context, out _);

    /// <summary>Cuts the connections of a token that is worth nothing any more. How many.</summary>
    public int Cut(string callerId) => CutAll((_, id) => id == callerId);

    /// <summary>Cuts the connections of which <paramref name="which"/> says so.</summary>
    public int CutAll(Func<HttpContext, string, bool> which)
    {
        int cut = 0;
        foreach ((HttpContext context, string id) in _calls)
        {
            if (!which(context, id)) continue;
            context.Abort();
            cut++;
        }

        return cut;
    }
}
