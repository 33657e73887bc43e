using System.Globalization;
using System.IO.Pipelines;
using System.Text;
using System.Text.Json;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>
/// The watch stream: server-sent events of everything that changes. A watcher has a place in the order of changes and no queue of
/// its own; what changed several times since it read last is told once. One that takes nothing for <see cref="WatchHub.StuckAfter"/> is cut off,
/// and may go on where it was. A token that is confined is told of what it sees, and of nothing else that there was something.
/// </summary>
internal sealed class WatchRoutes(Daemon daemon, WatchSource source)
{
    private const int WatchersMax = 32;

    // Those who see a part only cannot keep the node's own operators from watching, nor one of them the others.
    private const int ConfinedMax = 24, ConfinedOfOneMax = 4;

    // Many changes in a moment go out together.
    private static readonly TimeSpan s_gather = TimeSpan.FromMilliseconds(20);

    private readonly Dictionary<string, int> _confined = new(StringComparer.Ordinal); // by caller; under its own lock
    private int _watchers;

    /// <summary>The handlers by the keys of <see cref="ApiRouteTable"/>.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers =>
        new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal) { ["GET watch"] = WatchAsync };

    private async Task WatchAsync(ApiCall call)
    {
        long? from = call.QueryNumber("from") ?? LastEventId(call);
        string[] types = call.Query("types") is { } text ? text.Split(',')
            : [.. WatchTypes.All.Where(t => t != WatchTypes.Event || !call.Caller.IsConfined)];
        if (types.FirstOrDefault(t => !WatchTypes.All.Contains(t)) is { } unknown)
            throw new ApiException(400, "invalid-query", $"'{unknown}' is none of {string.Join(", ", WatchTypes.All)}", "types");
        if (call.Caller.IsConfined && types.Contains(WatchTypes.Event))
            throw new ApiException(403, "whole-node", "events are the whole node's; a token of a tenant or of single volumes is not enough", "types");
        bool withAll = call.Query("initial") is null || call.QueryFlag("initial");
        Enter(call.Caller);
        try
        {
            await call.SendAsync("text/event-stream", output => new Watcher(this, output, types, call).RunAsync(from, withAll));
        }
        finally
        {
            Leave(call.Caller);
        }
    }

    private void Enter(ApiCaller caller)
    {
        lock (_confined)
        {
            int own = caller.IsConfined ? _confined.GetValueOrDefault(caller.Id) : 0;
            if (_watchers >= WatchersMax) throw TooMany($"{WatchersMax} clients watch");
            if (own >= ConfinedOfOneMax) throw TooMany($"{own} clients of this token watch");
            if (caller.IsConfined && _confined.Values.Sum() >= ConfinedMax) throw TooMany($"{ConfinedMax} clients of tenants and of single volumes watch");
            _watchers++;
            if (caller.IsConfined) _confined[caller.Id] = own + 1;
        }

        static ApiException TooMany(string who) => new(503, "too-many-watchers", $"{who} already; end one of them");
    }

    private void Leave(ApiCaller caller)
    {
        lock (_confined)
        {
            _watchers--;
            if (caller.IsConfined && --_confined[caller.Id] == 0) _confined.Remove(caller.Id);
        }
    }

    // What a browser sends by itself when it comes again; anything else in it is not ours.
    private static long? LastEventId(ApiCall call) =>
        long.TryParse(call.Header("Last-Event-ID"), NumberStyles.None, CultureInfo.InvariantCulture, out long id) ? id : null;

    /// <summary>One client. One thread at a time.</summary>
    private sealed class Watcher(WatchRoutes routes, PipeWriter output, string[] types, ApiCall call)
    {
        private readonly Daemon _daemon = routes.Daemon;
        private readonly CancellationToken _aborted = call.Aborted;

        // What a confined one knows, by its name: whether something that is gone was his to see cannot be asked any more. So he who
        // comes again is told everything; null for who sees all.
        private readonly Dictionary<(string Type, string Key), string>? _known = call.Caller.IsConfined ? [] : null;
        private long _at;

        public async Task RunAsync(long? from, bool withAll)
        {
            try
            {
                _at = from ?? _daemon.Watch.Revision;
                if (from is null && withAll) await ResyncAsync("start");
                else if (from is not null && _known is not null && from != _daemon.Watch.Revision) await ResyncAsync("gap");
                else if (_known is not null) await LearnAsync(isTold: from is null);
                else if (from is null) await TellAsync(new WatchEvent(_at, WatchActions.Synced), withId: true);
                while (true)
                {
                    IReadOnlyList<WatchNotice>? news = _daemon.Watch.After(_at);
                    if (news is null) await ResyncAsync("gap");
                    else if (news.Count > 0) await TellAsync(news);
                    else if (!await HasNewsAsync()) await TellAsync(new WatchEvent(_at, WatchActions.Heartbeat), withId: true);
                }
            }
            catch (OperationCanceledException) when (_aborted.IsCancellationRequested)
            {
                // The client has left.
            }
        }

        private async Task<bool> HasNewsAsync()
        {
            // What was gathered goes before anybody waits.
            await FlushAsync();
            using var patience = CancellationTokenSource.CreateLinkedTokenSource(_aborted);
            patience.CancelAfter(_daemon.Watch.HeartbeatEvery);
            try
            {
                await _daemon.Watch.WaitAsync(_at, patience.Token);
                await Task.Delay(s_gather, _aborted);
                return true;
            }
            catch (OperationCanceledException) when (!_aborted.IsCancellationRequested)
            {
                return false;
            }
        }

        /// <summary>What exists, without telling it.</summary>
        private async Task LearnAsync(bool isTold)
        {
            _at = _daemon.Watch.Revision;
            await TellAllAsync(_at, isSilent: true);
            if (isTold) await TellAsync(new WatchEvent(_at, WatchActions.Synced), withId: true);
        }

        private async Task ResyncAsync(string reason)
        {
            long at = _daemon.Watch.Revision; // what changes meanwhile comes again
            await TellAsync(new WatchEvent(at, WatchActions.Resync, Reason: reason), withId: false);
            await TellAllAsync(at, isSilent: false);
            _at = at;
            await TellAsync(new WatchEvent(at, WatchActions.Synced), withId: true);
        }

        private async Task TellAllAsync(long at, bool isSilent)
        {
            _known?.Clear();
            foreach (string type in types)
            {
                foreach ((string key, string name, JsonElement now) in await routes.Source.ReadAsync(type, null, call))
                {
                    if (_known is not null) _known[(type, key)] = name;
                    if (!isSilent) await TellAsync(new WatchEvent(at, WatchActions.Changed, type, key, name, null, now), withId: false);
                }
            }
        }

        private async Task TellAsync(IReadOnlyList<WatchNotice> news)
        {
            // The last word on each is enough, in the order of the last words.
            var last = new Dictionary<(string, string), WatchNotice>();
            foreach (WatchNotice notice in news.Where(n => types.Contains(n.Type))) last[(notice.Type, notice.Key)] = notice;
            var now = new Dictionary<(string, string), (string Name, JsonElement Object)>();
            foreach (IGrouping<string, WatchNotice> there in last.Values.Where(n => !n.IsGone).GroupBy(n => n.Type))
            {
                foreach ((string key, string name, JsonElement value) in await routes.Source.ReadAsync(there.Key, [.. there], call))
                    now[(there.Key, key)] = (name, value);
            }

            foreach (WatchNotice n in last.Values.OrderBy(n => n.Revision))
            {
                (string, string) which = (n.Type, n.Key);
                string name = n.Name;
                bool isHere = now.TryGetValue(which, out (string Name, JsonElement Object) found);
                // Who sees all is told when what is not there any more is deleted. To who does not, it may have become another's.
                bool isGone = _known is null ? n.IsGone : !isHere && _known.Remove(which, out name!);
                if (_known is not null && isHere) _known[which] = found.Name;
                if (isGone) await TellAsync(new WatchEvent(n.Revision, WatchActions.Deleted, n.Type, n.Key, name), withId: true);
                else if (isHere) await TellAsync(new WatchEvent(n.Revision, WatchActions.Changed, n.Type, n.Key, found.Name, null, found.Object), withId: true);
            }

            _at = news[^1].Revision;
        }

        private async Task TellAsync(WatchEvent told, bool withId)
        {
            if (withId) Write(string.Create(CultureInfo.InvariantCulture, $"id: {told.Revision}\n"));
            Write($"event: {told.Action}\ndata: ");
            using (var json = new Utf8JsonWriter(output)) JsonSerializer.Serialize(json, told, ApiJson.Default.WatchEvent);
            Write("\n\n");
            if (output.UnflushedBytes > 64 << 10) await FlushAsync();
        }

        private void Write(string text) => output.Advance(Encoding.UTF8.GetBytes(text, output.GetSpan(Encoding.UTF8.GetMaxByteCount(text.Length))));

        private async Task FlushAsync()
        {
            using var patience = CancellationTokenSource.CreateLinkedTokenSource(_aborted);
            patience.CancelAfter(_daemon.Watch.StuckAfter);
            FlushResult flushed = await output.FlushAsync(patience.Token);
            if (flushed.IsCompleted || flushed.IsCanceled) throw new OperationCanceledException("the client has left");
        }
    }

    private Daemon Daemon => daemon;

    private WatchSource Source => source;
}
