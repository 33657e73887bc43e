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

    /// <summary>Starts the pump at the end of the turn, so that appends of one turn share a batch.</summary>
    public TurnEndHook? Pump;

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

    /// <summary>Takes a page away: the volume goes.</summary>
    public void Drop(uint index)
    {
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

/// <summary>Where a client is remembered: page of the volume, place in it.</summary>
internal readonly record struct AppendPlace(uint Page, uint Place);

/// <summary>What a batch answers to one of its appends: the outcome, and up to which LSN the log must be durable first.</summary>
internal readonly record struct AppendAnswer(AppendOutcome Outcome, ulong OffsetBytes, bool IsRepeat, ulong Lsn);

/// <summary>An append that waits for its batch. Lives on one loop.</summary>
internal sealed class AppendRequest(Stack<AppendRequest> home) : LoopOperation<AppendAnswer>
{
    public AppendKey Key;
    public ReadOnlyMemory<byte> Bytes;

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
