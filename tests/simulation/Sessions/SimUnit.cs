using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>
/// One logical unit of the simulated target: its volume's model, who holds it, and its tickets: the last blocks, changed
/// by COMPARE AND WRITE only, so that each content can be replaced once.
/// </summary>
internal sealed class SimUnit(ushort lun, int blockBytes, VolumeModel model)
{
    /// <summary>Blocks of 4 KiB with tickets.</summary>
    public const int Tickets = 4;

    /// <summary>Places where something lies that is to be copied.</summary>
    public const int Desks = 8;

    /// <summary>Sectors of one.</summary>
    public const ulong DeskSectors = 16;

    /// <summary>Thin provisioning soft threshold reached, ASC and ASCQ.</summary>
    public const ushort LowSpace = 0x3807;

    private const ulong SectorsPerBlock = Units.BlockBytes / Units.SectorBytes;

    private readonly HashSet<(ulong Sector, ulong Id)> _replaced = [];
    private readonly Queue<int> _freeDesks = new();
    private ulong _lastAbort;
    private int _abortsAsked;

    public ushort Lun { get; } = lun;

    public ulong LunField => (ulong)Lun << 48;

    public int BlockBytes { get; } = blockBytes;

    public VolumeModel Model { get; } = model;

    public ReservationOracle Reservations { get; } = new();

    public ReservationBytes Kept { get; } = new();

    public LogicalUnit? Unit { get; set; }

    /// <summary>The loop on which it lives.</summary>
    public ILoop? Loop { get; set; }

    /// <summary>Functions under way that end tasks of everybody.</summary>
    public int AbortsUnderWay { get; set; }

    /// <summary>Somebody asked for the end of tasks and never heard of it: from now on every task may vanish.</summary>
    public bool HasStrayAborts { get; set; }

    public ulong SectorsPerLba => (ulong)BlockBytes / Units.SectorBytes;

    /// <summary>Sectors that everything else may change.</summary>
    public ulong FreeSectors => DeskSector(0);

    /// <summary>The first designator of its page 83, once somebody asked.</summary>
    public byte[]? Designator { get; set; }

    public ulong TicketSector(int index) => Model.Sectors - (ulong)(Tickets - index) * SectorsPerBlock;

    /// <summary>The model knows nothing of the desks.</summary>
    public ulong DeskSector(int index) => TicketSector(0) - (ulong)(Desks - index) * DeskSectors;

    /// <summary>A desk that nobody uses, or null.</summary>
    public int? TakeDesk() => _freeDesks.TryDequeue(out int desk) ? desk : null;

    public void GiveDesk(int desk) => _freeDesks.Enqueue(desk);

    /// <summary>A process began.</summary>
    public void Begin()
    {
        _freeDesks.Clear();
        for (int i = 0; i < Desks; i++) GiveDesk(i);
        (HasStrayAborts, AbortsUnderWay, _abortsAsked) = (false, 0, 0);
        Causes.Clear();
    }

    /// <summary>Somebody asks for the end of tasks, his own too, or has heard of it.</summary>
    public void OnAbort(bool begins, ulong now)
    {
        _abortsAsked += begins ? 1 : -1;
        _lastAbort = now;
    }

    /// <summary>The end of tasks may have been asked for since <paramref name="start"/>.</summary>
    public bool HadAborts(ulong start) => HasStrayAborts || _abortsAsked > 0 || _lastAbort >= start;

    public bool MayRefuse(ulong start, ulong end) => Reservations.MayRefuse(start, end);

    /// <summary>Unit attentions whose cause is under way: a session that logs in now may be told.</summary>
    public List<ushort> Causes { get; } = [];

    /// <summary>A power cut may bring back what was replaced.</summary>
    public void OnPowerCut() => _replaced.Clear();

    /// <summary>The content named by <paramref name="id"/> was replaced; false when it was before.</summary>
    public bool Replace(ulong sector, ulong id) => _replaced.Add((sector, id));
}

/// <summary>What a unit saved of its reservations: survives the process, but not a save under way.</summary>
internal sealed class ReservationBytes
{
    private byte[] _bytes = [];

    public IReservationStore On(ILoop loop, bool forgets) => new Store(this, loop, forgets);

    private sealed class Store(ReservationBytes kept, ILoop loop, bool forgets) : IReservationStore
    {
        public ValueTask<(IoStatus Status, ReadOnlyMemory<byte> Bytes)> LoadAsync() => new((IoStatus.Ok, kept._bytes));

        public async ValueTask<IoStatus> SaveAsync(ReadOnlyMemory<byte> bytes)
        {
            byte[] copy = bytes.ToArray();
            await loop.DelayAsync(1 + loop.Random.NextBelow(1_000_000UL));
            if (!forgets) kept._bytes = copy;
            await loop.DelayAsync(1 + loop.Random.NextBelow(1_000_000UL));
            return IoStatus.Ok;
        }
    }
}
