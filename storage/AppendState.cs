using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>An append-only volume in RAM: its length, the clients whose appends are remembered, and who waits for it. Lives on
/// one loop.</summary>
internal sealed class AppendState
{
    /// <summary>Its pages by index; null where there is none.</summary>
    public readonly AppendPage?[] Pages = new AppendPage?[AppendPage.PagesMax];

    /// <summary>Slots of the pages.</summary>
    public readonly uint[] Slots = new uint[AppendPage.PagesMax];

    /// <summary>Appends that are not written yet, in the order of their coming.</summary>
    public Queue<AppendRequest> Waiting = new();

    /// <summary>The appends that are being written.</summary>
    public readonly List<AppendRequest> Batch = [];

    /// <summary>Who waits for the length to grow.</summary>
    public readonly List<AppendWait> Waits = [];

    /// <summary>What the last block holds in front of the length, as long as <see cref="TailOf"/> is the length.</summary>
    public readonly byte[] Tail = new byte[Units.BlockBytes];

    private readonly Dictionary<Guid, AppendPlace> _clients = [];

    /// <summary>The length that <see cref="Tail"/> belongs to.</summary>
    public ulong TailOf;

    /// <summary>Length after the last append that is in the log and complete.</summary>
    public ulong LengthBytes;

    /// <summary>Length after the last append that is durable: what readers see.</summary>
    public ulong DurableBytes;

    /// <summary>How often the length went back.</summary>
    public uint Resets;

    /// <summary>Bytes that the batch adds, at most.</summary>
    public ulong BatchBytes;

    /// <summary>No append is begun any more: the volume is sealed, or about to be.</summary>
    public bool IsSealing;

    /// <summary>The batches are being written.</summary>
    public bool IsPumping;

    /// <summary>Appends wait: the volume is about to get another home.</summary>
    public bool IsHeld;

    /// <summary>It has another home: nothing is appended here any more.</summary>
    public bool HasMoved;

    /// <summary>Who holds them back and waits for the pump to end; null when nobody does.</summary>
    public LoopEvent<bool>? Rest;

    /// <summary>Starts the pump at the end of the turn, so that appends of one turn share a batch.</summary>
    public TurnEndHook? Pump;

    /// <summary>The pump, and what is done when it has come to its end.</summary>
    public ValueTaskAwaiter<IoStatus> Pumped;

    public Action? OnPumped;

    /// <summary>What paces the batches; made with the first append.</summary>
    public AppendPace? Pace;

    /// <summary>Appends that were ever asked for.</summary>
    public ulong Asked;

    /// <summary>Bytes of the appends that are not written yet.</summary>
    public long WaitingBytes;

    /// <summary>Clients whose appends are remembered.</summary>
    public int ClientCount => _clients.Count;

    /// <summary>What a device shows of a length: whole blocks, at least one.</summary>
    public static ulong Shown(ulong lengthBytes) =>
        Math.Max(1, (lengthBytes + Units.BlockBytes - 1) >> Units.BlockShift) << Units.BlockShift;

    /// <summary>A client, or null when it is not known.</summary>
    public AppendClient? Find(Guid client) => TryPlace(client, out AppendPlace place) ? Pages[place.Page]![place.Place] : null;

    /// <summary>Where a client is remembered.</summary>
    public bool TryPlace(Guid client, out AppendPlace place) => _clients.TryGetValue(client, out place);

    /// <summary>Puts a page into its place, as recovery or a record says; its clients are known from now on.</summary>
    public void SetPage(uint index, uint slot, AppendPage page)
    {
        Pages[index] = page;
        Slots[index] = slot;
        for (uint place = 0; place < AppendPage.PlacesMax; place++)
        {
            if (page[place] is { } client) _clients[client.Id] = new AppendPlace(index, place);
        }

        LengthBytes = Math.Max(LengthBytes, page.LengthBytes);
    }

    /// <summary>Takes a page away with its clients: the volume goes. Appends may wait meanwhile that still ask who is known.</summary>
    public void Drop(uint index)
    {
        for (uint place = 0; place < AppendPage.PlacesMax; place++)
        {
            if (Pages[index]?[place] is { } client) _clients.Remove(client.Id);
        }

        Pages[index] = null;
        Slots[index] = 0;
    }

    /// <summary>Every client is forgotten and the length is another one: the volume went back to a snapshot.</summary>
    public void Reset(ulong lengthBytes)
    {
        _clients.Clear();
        foreach (AppendPage? page in Pages)
        {
            if (page is null) continue;
            page.ForgetClients();
            page.LengthBytes = lengthBytes;
        }

        (LengthBytes, DurableBytes, TailOf) = (lengthBytes, lengthBytes, 0);
        Resets++;
    }

    /// <summary>A place in the pages for a new client: a free one, else that of the client whose last append is the oldest. A
    /// page more is needed when it is null.</summary>
    public AppendPlace? Admit(AppendClient client, bool mayForget)
    {
        AppendPlace? oldest = null;
        ulong least = ulong.MaxValue;
        for (uint index = 0; index < AppendPage.PagesMax; index++)
        {
            if (Pages[index] is not { } page) continue;
            for (uint place = 0; place < AppendPage.PlacesMax; place++)
            {
                if (page[place] is null) return Settle(client, new AppendPlace(index, place));
                if (page[place]!.LastVersion >= least) continue;
                least = page[place]!.LastVersion;
                oldest = new AppendPlace(index, place);
            }
        }

        return mayForget && oldest is { } old ? Settle(client, old) : null;
    }

    private AppendPlace Settle(AppendClient client, AppendPlace at)
    {
        AppendPage page = Pages[at.Page]!;
        if (page[at.Place] is { } gone) _clients.Remove(gone.Id);
        page[at.Place] = client;
        _clients[client.Id] = at;
        return at;
    }
}

/// <summary>
/// When the next batch of a volume begins. While what was written last becomes durable the next batch gathers, unless it is large enough to be
/// worth a write of its own meanwhile; and whoever was answered together is waited for a moment, since he asks again together: without it
/// the first of them would go alone, and all others wait for two flushes instead of one. Lives on one loop; made once for a volume.
/// </summary>
internal sealed class AppendPace
{
    /// <summary>Longest wait for those who were answered together; less on a disk that is faster.</summary>
    public const ulong GatherNanosMax = 500_000;

    private readonly ILoop _loop;
    private readonly AppendState _state;
    private readonly int _overlapBytes;
    private readonly LoopTimer _timer;
    private readonly LoopOperation<bool> _change = new();
    private readonly Action _onDurable;
    private readonly Queue<(ValueTaskAwaiter<IoStatus> Durable, int Appends)> _flushing = [];
    private ulong _beganNanos, _lastNanos, _answeredAt;
    private int _answered, _expected;
    private bool _isElapsed;

    /// <summary>For the appends of <paramref name="state"/>, of a store on <paramref name="loop"/>. With <paramref name="overlapBytes"/> waiting a
    /// batch is written while another one is flushed.</summary>
    public AppendPace(ILoop loop, AppendState state, int overlapBytes)
    {
        (_loop, _state, _overlapBytes) = (loop, state, overlapBytes);
        _onDurable = () =>
        {
            (ValueTaskAwaiter<IoStatus> durable, int appends) = _flushing.Dequeue();
            OnDurable(durable, appends);
        };
        _timer = loop.CreateTimer(() =>
        {
            _isElapsed = true;
            OnChange();
        });
    }

    /// <summary>What was written last is not durable yet.</summary>
    private bool IsFlushing => _flushing.Count > 0;

    /// <summary>A batch is written, has <paramref name="appends"/>, and is durable when <paramref name="durable"/> says so.</summary>
    public void OnWritten(int appends, ValueTask<IoStatus> durable)
    {
        ValueTaskAwaiter<IoStatus> awaiter = durable.GetAwaiter();
        if (awaiter.IsCompleted)
        {
            OnDurable(awaiter, appends);
            return;
        }

        _flushing.Enqueue((awaiter, appends)); // they are answered in this order
        awaiter.UnsafeOnCompleted(_onDurable);
    }

    /// <summary>An append came, or anything else that may end the wait.</summary>
    public void OnChange()
    {
        if (_change.IsPending) _change.Complete(true);
    }

    /// <summary>Waits until the next batch is to begin, and begins it.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<bool> WaitAsync(int appendsMax)
    {
        while (IsFlushing && _state.WaitingBytes < _overlapBytes && _state.Waiting.Count < appendsMax) await _change.Begin();
        ulong until = _answeredAt + Math.Min(GatherNanosMax, _lastNanos / 2), now = _loop.NowNanos;
        if (now < until && _state.Waiting.Count < _expected && _state.WaitingBytes < _overlapBytes)
        {
            _isElapsed = false;
            _timer.Start(until - now);
            while (!_isElapsed && _state.Waiting.Count < _expected && _state.WaitingBytes < _overlapBytes) await _change.Begin();
            _timer.Stop();
        }

        _answered = _expected = 0;
        _beganNanos = _loop.NowNanos;
        return true;
    }

    private void OnDurable(ValueTaskAwaiter<IoStatus> durable, int appends)
    {
        durable.GetResult();
        _answered += appends;
        // Those who wait already came while the others were on their way: together they are one group from now on, not two by turns.
        _expected = _answered + _state.Waiting.Count;
        _answeredAt = _loop.NowNanos;
        _lastNanos = _answeredAt - _beganNanos;
        OnChange();
    }
}

/// <summary>Where a client is remembered: page of the volume, place in it.</summary>
internal readonly record struct AppendPlace(uint Page, uint Place);

/// <summary>What a batch answers to one of its appends: the outcome, and up to which LSN the log must be durable first.</summary>
internal readonly record struct AppendAnswer(AppendOutcome Outcome, ulong OffsetBytes, bool IsRepeat, ulong Lsn);

/// <summary>An append that waits for its batch. Lives on one loop.</summary>
internal sealed class AppendRequest(Stack<AppendRequest> home) : LoopOperation<AppendAnswer>
{
    public AppendKey Key;
    public ReadOnlyMemory<byte> Bytes;

    /// <summary>Whose order it is in: its client's, or that of one call; empty: it stands alone.</summary>
    public Guid Order;

    /// <summary>It was asked for behind <paramref name="refused"/> and must not land when that one did not.</summary>
    public bool Follows(AppendRequest refused) =>
        Order != Guid.Empty && Order == refused.Order && (Key.Client == Guid.Empty || Key.Sequence > refused.Key.Sequence);

    protected override void OnTaken()
    {
        Bytes = default;
        home.Push(this);
    }
}

/// <summary>Somebody who waits for a length above <paramref name="lengthBytes"/>. Lives on one loop.</summary>
internal sealed class AppendWait(ulong lengthBytes)
{
    private readonly LoopEvent<bool> _end = new();

    public ulong LengthBytes => lengthBytes;

    public ValueTask<bool> WaitAsync() => _end.WaitAsync();

    public void End()
    {
        if (!_end.IsSet) _end.Set(true);
    }
}
