using System.Globalization;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>
/// One initiator: it logs in, works with several commands at a time, leaves in one of many ways or is cut off, and comes
/// back. What it asks for is in Initiator.Work.cs.
/// </summary>
internal sealed partial class Initiator(SessionSimulation world, int number)
{
    private const int LoginsMax = 12;

    private readonly SeededRandom _dice = world.Dice;
    private readonly string _name = $"iqn.2026-11.org.example:client{number}";
    private readonly ulong _isid = 0x00023D000000 + (ulong)number;
    private int _workers;
    private ulong _otherPorts;

    /// <summary>From its first login to its last.</summary>
    public async Task LiveAsync()
    {
        SimSession? old = null;
        for (int logins = 0; logins < LoginsMax && world.IsWorking; logins++)
        {
            if (old is null || _dice.NextChance(0.5)) await world.Loop.DelayAsync(1 + _dice.NextBelow(3_000_000UL));
            bool isSamePort = old is null || _dice.NextChance(0.85);
            ulong isid = isSamePort ? old?.Isid ?? _isid : _isid + (++_otherPorts << 8);
            var session = new SimSession(world, _name, isid, new SessionKeys(_dice));
            bool wasAlive = old is { IsDead: false };
            (SimLink? Link, VolumeModel Volume, ModelWrite Write)[] left = [];
            world.Enlist(session);
            if (!await session.OpenAsync()) continue;
            if (old is not null && isSamePort)
            {
                // Its place was taken: what it had under way has ended on the disk before this login was answered.
                if (wasAlive) world.Counters[SessionDid.Reinstatements]++;
                old.Abandon();
                left = [.. old.Unsettled];
                SettleAll(old);
            }
            else
            {
                old?.Abandon();
            }

            CountKeys(session);
            await UseAsync(session, left);
            old = session;
        }

        while (_workers > 0 && old is { IsDead: false }) await world.Loop.DelayAsync(100_000);
        if (old is { IsDead: false }) await LogoutAsync(old);
        old?.Abandon();
        while (_workers > 0) await world.Loop.DelayAsync(100_000);
    }

    private static string PortOf(SimSession session) =>
        $"{session.InitiatorName},i,0x{session.Isid.ToString("x12", CultureInfo.InvariantCulture)}";

    private void CountKeys(SimSession session)
    {
        SessionKeys keys = session.Keys;
        world.Counters[SessionDid.Logins]++;
        if (keys.HeaderDigest) world.Counters[SessionDid.HeaderDigests]++;
        if (keys.DataDigest) world.Counters[SessionDid.DataDigests]++;
        world.Counters[(keys.ImmediateData, keys.InitialR2T) switch
        {
            (true, false) => SessionDid.ImmediateUnsolicited,
            (true, true) => SessionDid.ImmediateSolicited,
            (false, false) => SessionDid.UnsolicitedOnly,
            _ => SessionDid.SolicitedOnly,
        }]++;
    }

    private void SettleAll(SimSession session)
    {
        world.Settle(session);
        foreach ((SimSession stuck, SimUnit unit) in _stuck)
        {
            if (stuck == session) unit.Reservations.IsPlaying = false;
        }

        _stuck.RemoveAll(entry => entry.Session == session);
    }

    /// <summary>One session, until it is over or another is to take its place.</summary>
    private async Task UseAsync(SimSession session, (SimLink? Link, VolumeModel Volume, ModelWrite Write)[] left)
    {
        foreach (SimUnit unit in world.Units) await GreetAsync(session, unit);
        foreach ((_, VolumeModel volume, ModelWrite write) in left.TakeLast(3))
        {
            SimUnit unit = world.Units.First(u => u.Model == volume);
            ulong most = (ulong)session.Keys.TransferBytesMax / BlockServer.Core.Units.SectorBytes / 8 * 8;
            _workers++;
            world.Spawn(async () =>
            {
                await LookTwiceAsync(session, unit, write.FirstSector, Math.Min(write.Sectors, most));
                _workers--;
            });
        }

        while (session.Links.Count < session.Keys.MaxConnections && !session.IsDead && world.IsWorking)
        {
            if (!await session.JoinAsync()) break;
        }

        MayFlip(session);
        int depth = 1 + _dice.NextBelow(6);
        for (int i = 0; i < depth; i++)
        {
            _workers++;
            world.Spawn(async () =>
            {
                await WorkAsync(session);
                _workers--;
            });
        }

        while (!session.IsDead && world.IsWorking)
        {
            await world.Loop.DelayAsync(1 + _dice.NextBelow(20_000_000UL));
            if (session.IsDead || !world.IsWorking) break;
            if (await DisturbAsync(session)) return;
        }

        while (_workers > 0 && !session.IsDead) await world.Loop.DelayAsync(50_000);
        if (session.IsDead) return;
        foreach (SimUnit unit in world.Units) await DrainAsync(session, unit);
        await LogoutAsync(session);
    }

    /// <summary>Something that happens to sessions; true when this one is over, or to be replaced.</summary>
    private async Task<bool> DisturbAsync(SimSession session)
    {
        SimLink[] links = [.. session.Links];
        SimLink one = links[_dice.NextBelow(links.Length)];
        switch (_dice.NextBelow(9))
        {
            case 0:
                await LogoutAsync(session);
                return true;
            case 1 when world.HasCuts:
                session.Abandon();
                return true;
            case 2 when world.HasCuts:
                one.Wire.Break();
                return true;
            case 3:
                return true; // the next login takes its place while it works
            case 4 or 5 when links.Length > 1:
                await session.JoinAsync(instead: one);
                return false;
            case 6 when links.Length > 1:
                SimLink on = links[_dice.NextBelow(links.Length)];
                await LogoutConnectionAsync(session, on, one);
                return false;
            default:
                return false;
        }
    }

    private async Task LogoutAsync(SimSession session)
    {
        SimLink[] open = [.. session.Links.Where(l => !l.IsLeaving && !l.IsDead)];
        if (open.Length == 0) return;
        IscsiLogoutResponse? response = await session.LogoutAsync(IscsiLogoutReason.CloseSession, open[_dice.NextBelow(open.Length)], 0);
        session.Abandon();
        if (response is null) return;
        if (response != IscsiLogoutResponse.Success) world.Violate(ViolationKind.WrongProtocol, $"logout was answered {response}");
        SettleAll(session);
        world.Counters[SessionDid.Logouts]++;
    }

    /// <summary>Logs out <paramref name="gone"/> by a request on <paramref name="on"/>, which may be the same.</summary>
    private async Task LogoutConnectionAsync(SimSession session, SimLink on, SimLink gone)
    {
        IscsiLogoutResponse? response = await session.LogoutAsync(IscsiLogoutReason.CloseConnection, on, gone.Cid);
        if (response is null) return;
        if (response != IscsiLogoutResponse.Success) world.Violate(ViolationKind.WrongProtocol, $"logout of a connection was answered {response}");
        gone.Die();
        world.Settle(session, gone);
        await session.PlugAsync(gone);
        world.Counters[SessionDid.ConnectionLogouts]++;
    }

    /// <summary>With both digests on the network may flip a bit: the session must end, no data may change.</summary>
    private void MayFlip(SimSession session)
    {
        if (!world.HasCuts || !session.Keys.HeaderDigest || !session.Keys.DataDigest || !_dice.NextChance(0.5)) return;
        foreach (SimLink link in session.Links)
        {
            Simulated.SimConnection end = _dice.NextChance(0.7) ? link.Wire.Other : link.Wire;
            end.FlipsByte = end.ArrivedBytes + 1 + (long)_dice.NextBelow(1UL << (6 + _dice.NextBelow(12)));
            world.Counters[SessionDid.Flips]++;
            return;
        }
    }
}
