using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>
/// Whole sessions: simulated initiators and NBD clients speak over simulated connections, cut at drawn bytes, to the
/// product's front ends over the product's store on a simulated disk. Several lives of the process, each ended by a kill,
/// a power cut or a stop. What an initiator may see is judged by <see cref="VolumeModel"/> and by its own state machine.
/// Everything follows from the seed; runs share nothing.
/// </summary>
public sealed partial class SessionSimulation
{
    internal const string TargetName = "iqn.2026-11.org.example:disk";

    private const ulong EventsPerLifeMax = 20_000_000;

    private readonly SessionOptions _options;
    private readonly SeededRandom _random;
    private readonly SeededRandom _news; // what the daemon tells of itself
    private readonly bool _hasFarUnits;
    private readonly List<Violation> _violations = [];
    private readonly List<SimUnit> _units = [];
    private readonly ulong _seed;
    private readonly Durability _durability;
    private readonly bool _keepsReservations;
    private SimDisk _disk = null!;
    private ulong _hash = 14695981039346656037;
    private bool _powerWasCut;

    private SessionSimulation(ulong seed, SessionOptions options)
    {
        (_seed, _options) = (seed, options);
        _random = new SeededRandom(seed);
        _news = new SeededRandom(~seed);
        _hasFarUnits = seed % 2 == 0;
        Dice = new SeededRandom(_random.NextUInt64());
        Durability drawn = _random.NextChance(0.6) ? Core.Durability.Flush : Core.Durability.Ack;
        _durability = options.Durability ?? drawn;
        _keepsReservations = _random.NextChance(0.7);
    }

    internal SimLoop Loop { get; private set; } = null!;

    /// <summary>The initiators' dice.</summary>
    internal SeededRandom Dice { get; }

    internal SessionCounters Counters { get; } = new();

    internal IReadOnlyList<SimUnit> Units => _units;

    /// <summary>Model time: counts calls and answers.</summary>
    internal ulong Now { get; private set; }

    internal bool IsBroken => _violations.Count > 0;

    internal bool HasFarUnits => _hasFarUnits;

    internal bool KeepsReservations => _keepsReservations;

    /// <summary>Runs seeds with these options, and says how to run each again.</summary>
    internal static SeedRunner<SessionCounters> RunnerOf(SessionOptions options) => new(
        seed => Run(seed, options),
        seed => $"dotnet run -c Release --project tests/simulation -- simulate --sessions --seed {seed}"
            + (options.Breakage == SessionBreakage.None ? "" : $" --broken {options.Breakage}"));

    /// <summary>Runs many seeds: see <see cref="SeedSweep{TCounters}"/>.</summary>
    public static SeedSweep<SessionCounters> Sweep(ulong from, ulong to, SessionOptions options, bool twice, bool keepGoing) =>
        SeedSweep<SessionCounters>.Run(from, to, RunnerOf(options), twice, keepGoing, goOn: null);

    /// <summary>Runs one seed.</summary>
    public static SeedResult<SessionCounters> Run(ulong seed, SessionOptions options)
    {
        var simulation = new SessionSimulation(seed, options);
        try
        {
            simulation.RunLives();
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            simulation.Violate(ViolationKind.Exception, thrown.ToString());
        }

        return new SeedResult<SessionCounters>(seed, simulation._hash, simulation._violations, simulation.Counters);
    }

    /// <summary>The next moment of model time.</summary>
    internal ulong Tick() => ++Now;

    internal ulong NextId() => ++_lastId;

    private ulong _lastId;

    /// <summary>Runs a coroutine of the simulated world; what it throws is a violation.</summary>
    internal async void Spawn(Func<Task> coroutine)
    {
        try
        {
            await coroutine();
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            Violate(ViolationKind.Exception, thrown.ToString());
        }
    }

    /// <summary>What the session left open on <paramref name="link"/> (null: everywhere) cannot happen any more.</summary>
    internal void Settle(SimSession session, SimLink? link = null)
    {
        ulong now = Tick();
        foreach ((SimLink? on, VolumeModel volume, ModelWrite write) in session.Unsettled)
        {
            if (link is null || link == on) volume.End(write, isOk: false, isDurable: false, now);
        }

        session.Unsettled.RemoveAll(left => link is null || left.Link == link);
        Tick();
    }

    internal void Trace(SimSession session, SimLink link, string way, ReadOnlySpan<byte> bhs)
    {
        if (_options.Trace is null) return;
        IscsiHeader header = IscsiHeader.Read(bhs);
        _options.Trace(
            $"{Loop.NowNanos / 1000,10} {session.InitiatorName[^1]}:{session.Tsih}.{link.Cid} {way} {header.Opcode} {Convert.ToHexString(bhs[..4])}"
                + $" tag {header.InitiatorTaskTag:X} +{header.DataBytes} 20: {Convert.ToHexString(bhs[20..24])} {Convert.ToHexString(bhs[24..36])} {Convert.ToHexString(bhs[36..48])}");
    }

    internal void Violate(ViolationKind kind, string what) => Violate(new Violation(kind, what));

    internal void Violate(Violation violation)
    {
        if (_violations.Count >= 20) return;
        _violations.Add(violation with { Text = $"{violation.Text} [{_durability}, seed {_seed}]" });
    }

    private void RunLives()
    {
        Loop = new SimLoop(_random.NextUInt64());
        _disk = new SimDisk(Loop, Driver.MediumBytes, _random.NextUInt64());
        string? refusal = Loop.Run(Driver.FormatAsync(Loop, _disk, 1 + _random.NextBelow(3)));
        if (refusal is not null) Violate(ViolationKind.Refused, "format: " + refusal);
        DrawUnits();
        for (int life = 0; life < _options.Lives && !IsBroken; life++) RunLife(isLast: life == _options.Lives - 1);
        foreach (string misuse in _disk.Misuse) Violate(ViolationKind.DiskMisuse, misuse);
    }

    private static StorageDriver Driver { get; } = new();

    /// <summary>One or two volumes, with blocks of 512 or 4096 bytes.</summary>
    private void DrawUnits()
    {
        int count = 1 + _random.NextBelow(2);
        for (uint i = 0; i < count; i++)
        {
            ulong size = Units_MiB(1 + _random.NextBelow(2));
            var head = new VolumeHead(i + 1, _random.NextGuid(), $"v{i}", size, 1);
            _units.Add(new SimUnit((ushort)i, _random.NextChance(0.7) ? 512 : 4096, new VolumeModel(head) { IsSure = true }));
        }
    }

    private static ulong Units_MiB(int count) => (ulong)count * Core.Units.MiB;
}
