using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;

namespace BlockServer.Tests.Unit.Iscsi.Scsi;

/// <summary>RESERVE (6) and persistent reservations: who may do what, exact answers, unit attentions, restarts.</summary>
public class ReservationTests
{
    private const string Ready = "000000000000";
    private static readonly string Read = ScsiWorld.Cdb16(0x88, 0, 1), Write = ScsiWorld.Cdb16(0x8A, 0, 1);

    [Fact]
    public void Reserve_keeps_others_out_until_release_or_reset()
    {
        var world = new ScsiWorld();
        world.Good(world.A, "160000000000");
        world.Good(world.A, "160000000000");
        world.Conflict(world.B, "160000000000");
        world.Good(world.B, "170000000000"); // no effect
        world.Conflict(world.B, "1A003F00FF00");
        world.Conflict(world.B, Ready);
        world.Conflict(world.B, Write, new byte[512]);
        world.Conflict(world.B, "5E000000000000010000");
        world.Conflict(world.B, "1E0000000100");
        world.Good(world.B, "1E0000000000");
        world.Good(world.B, "12000000FF00");
        world.Good(world.B, "25000000000000000000");
        world.Good(world.B, "A00000000000000001000000");
        world.Good(world.A, Write, new byte[512]);
        Assert.Contains("test:a", world.Unit.ReservedBy, StringComparison.Ordinal);
        world.Good(world.A, "57000000000000000000");
        world.Good(world.B, "56000000000000000000");
        world.Loop.Run(world.Target.ManageAsync(world.A, TaskFunction.LogicalUnitReset, 0, 0));
        world.Bad(world.A, Ready, "06/29/03");
        world.Good(world.A, "160000000000");
        world.Target.RemoveNexus(world.A);
        world.Bad(world.B, Ready, "06/29/03");
        world.Good(world.B, "160000000000");
        Out(world, world.B, 0, 0, 1, conflict: true); // not while RESERVE is held
        world.Good(world.B, "170000000000");
        Out(world, world.B, 0, 0, 1);
        world.Conflict(world.B, "160000000000"); // and not while somebody is registered
    }

    [Theory]
    [InlineData(1, "rw r- r-")]
    [InlineData(3, "rw -- --")]
    [InlineData(5, "rw rw r-")]
    [InlineData(6, "rw rw --")]
    [InlineData(7, "rw rw r-")]
    [InlineData(8, "rw rw --")]
    public void Types_let_in_holder_registrant_and_stranger(int type, string access)
    {
        var world = new ScsiWorld();
        ScsiNexus stranger = world.Login("c", 1);
        Out(world, world.A, 0, 0, 0xA);
        Out(world, world.B, 0, 0, 0xB);
        Out(world, world.A, 1, 0xA, 0, type);
        ScsiNexus[] nexuses = [world.A, world.B, stranger];
        string[] rights = access.Split(' ');
        for (int i = 0; i < 3; i++)
        {
            ScsiNexus nexus = nexuses[i];
            bool reads = rights[i][0] == 'r', writes = rights[i][1] == 'w';
            foreach (string cdb in new[] { Read, ScsiWorld.Cdb10(0x2F, 0, 1), ScsiWorld.Cdb10(0x34, 0, 1), "1A003F00FF00", "A30C00000000000010000000",
                "9E12" + ScsiWorld.U64(0) + "000000180000", "37000D00000000010000" })
                Assert.Equal(reads, world.Send(nexus, cdb).Status == ScsiStatus.Good);
            foreach ((string cdb, int bytes) in new[] { (Write, 512), (ScsiWorld.Cdb10(0x35, 0, 1), 0), ("42000000000000000000", 0),
                (ScsiWorld.Cdb16(0x8B, 0, 1), 512), ("151000000000", 0), ("1D0400000000", 0), ("83000000000000000000000000000000", 0), ("1B0000000000", 0) })
                Assert.Equal(writes, world.Send(nexus, cdb, new byte[bytes]).Status == ScsiStatus.Good);
            foreach (string cdb in new[] { Ready, "12000000FF00", "25000000000000000000", "030000001200", "A00000000000000001000000", "4D000000000000010000",
                "5E000000000000010000", "1B0000000100", "1E0000000000", "A30A00000000000001000000" })
                world.Good(nexus, cdb);
        }
    }

    [Fact]
    public void Persistent_reserve_in_has_these_bytes()
    {
        var world = new ScsiWorld();
        Assert.Equal("0000000000000000", world.Good(world.A, "5E000000000000010000").Text);
        Out(world, world.A, 0, 0, 0x1122334455667788);
        Out(world, world.B, 6, 0xDEAD, 0xBB);
        Assert.Equal("00000002" + "00000010" + "1122334455667788" + "00000000000000BB", world.Good(world.A, "5E000000000000010000").Text);
        Assert.Equal("00000002" + "00000010", world.Good(world.A, "5E000000000000000800").Text); // cut, the length is not
        Assert.Equal("00000002" + "00000000", world.Good(world.A, "5E010000000000010000").Text);
        Out(world, world.B, 1, 0xBB, 0, 5);
        Assert.Equal("00000002" + "00000010" + "00000000000000BB" + "00000000" + "0005" + "0000", world.Good(world.A, "5E010000000000010000").Text);
        Assert.Equal("00080C80" + "EA010000", world.Good(world.A, "5E020000000000010000").Text);
        string Id(string name) => "45000024" + Convert.ToHexString(Encoding.ASCII.GetBytes(name)) + "00";
        Assert.Equal("00000002" + "00000080" + "1122334455667788" + "00000000" + "0000" + "00000000" + "0001" + "00000028"
            + Id("iqn.2024-01.test:a,i,0x400000000001") + "00000000000000BB" + "00000000" + "0105" + "00000000" + "0002" + "00000028"
            + Id("iqn.2024-01.test:b,i,0x400000000001"), world.Good(world.A, "5E030000000000010000").Text);
        for (int action = 4; action < 32; action++) world.Bad(world.A, $"5E{action:X2}0000000000010000", "05/24/00");
    }

    [Fact]
    public void Registering_needs_the_right_key()
    {
        var world = new ScsiWorld();
        Out(world, world.A, 0, 5, 1, conflict: true);
        Out(world, world.A, 0, 0, 0); // nothing to take away
        Assert.Equal("0000000000000000", world.Good(world.A, "5E000000000000010000").Text);
        Out(world, world.A, 0, 0, 1);
        Out(world, world.A, 0, 0, 2, conflict: true);
        Out(world, world.A, 0, 1, 2);
        Out(world, world.A, 6, 99, 3);
        Out(world, world.A, 1, 2, 0, 1, conflict: true);
        Out(world, world.B, 1, 0, 0, 1, conflict: true); // not registered
        Out(world, world.A, 0, 3, 0);
        Assert.Equal("0000000400000000", world.Good(world.A, "5E000000000000010000").Text);
        world.Bad(world.A, "5F000000000000001700", "05/1A/00", new byte[23]);
        world.Bad(world.A, "5F010000000000001C00", "05/1A/00", new byte[28]);
        world.Bad(world.A, "5F000000000000001800", "05/26/00", ScsiWorld.Hex(new string('0', 40) + "01000000")); // APTPL without a store
        Out(world, world.A, 0, 0, 3);
        world.Bad(world.A, "5F011100000000001800", "05/24/00", OutList(3, 0)); // scope
        world.Bad(world.A, "5F010200000000001800", "05/24/00", OutList(3, 0)); // type
        Assert.Equal("05/24/00", world.Send(world.A, "5F080100000000001800", OutList(3, 0)).Sense);
    }

    [Theory]
    [InlineData(1, false)]
    [InlineData(3, false)]
    [InlineData(5, true)]
    [InlineData(6, true)]
    [InlineData(7, true)]
    [InlineData(8, true)]
    public void Releasing_tells_registrants_of_shared_types(int type, bool tells)
    {
        var world = new ScsiWorld();
        Out(world, world.A, 0, 0, 0xA);
        Out(world, world.B, 0, 0, 0xB);
        Out(world, world.A, 1, 0xA, 0, type);
        Out(world, world.A, 1, 0xA, 0, type); // again
        Out(world, world.A, 1, 0xA, 0, type == 1 ? 3 : 1, conflict: true);
        bool isAll = type >= 7;
        Out(world, world.B, 1, 0xB, 0, type, conflict: !isAll);
        Out(world, world.A, 2, 0xA, 0, type == 1 ? 3 : 1, sense: "05/26/04");
        if (!isAll) Out(world, world.B, 2, 0xB, 0, type); // no holder: no effect
        Assert.Equal((ReservationType)type, world.Unit.ReservationType);
        Out(world, world.A, 2, 0xA, 0, type);
        Assert.Equal(ReservationType.None, world.Unit.ReservationType);
        if (tells) world.Bad(world.B, Ready, "06/2A/04");
        world.Good(world.B, Ready);
        world.Good(world.A, Ready);
        Out(world, world.A, 2, 0xA, 0, type); // nothing is held
    }

    [Theory]
    [InlineData(1, true, false)]
    [InlineData(3, true, false)]
    [InlineData(5, true, true)]
    [InlineData(6, true, true)]
    [InlineData(7, false, false)]
    [InlineData(8, false, false)]
    public void A_holder_that_unregisters_takes_its_reservation_along(int type, bool ends, bool tells)
    {
        var world = new ScsiWorld();
        Out(world, world.A, 0, 0, 0xA);
        Out(world, world.B, 0, 0, 0xB);
        Out(world, world.A, 1, 0xA, 0, type);
        Out(world, world.A, 0, 0xA, 0);
        Assert.Equal(ends ? ReservationType.None : (ReservationType)type, world.Unit.ReservationType);
        if (tells) world.Bad(world.B, Ready, "06/2A/04");
        world.Good(world.B, Ready);
        if (!ends)
        {
            Assert.Equal("0000000000000000", world.Good(world.B, "5E010000000000010000").Text[16..32]); // no one key
            Out(world, world.B, 0, 0xB, 0); // the last one
        }

        Assert.Equal(ReservationType.None, world.Unit.ReservationType);
    }

    [Fact]
    public void Clearing_tells_every_registrant()
    {
        var world = new ScsiWorld();
        Out(world, world.A, 0, 0, 0xA);
        Out(world, world.B, 0, 0, 0xB);
        Out(world, world.A, 1, 0xA, 0, 3);
        Out(world, world.B, 3, 0xB, 0);
        world.Bad(world.A, Ready, "06/2A/03");
        world.Good(world.B, Ready);
        Assert.Empty(world.Unit.Registrations);
        Assert.Equal("0000000300000000", world.Good(world.A, "5E000000000000010000").Text);
    }

    [Fact]
    public void Preempting_removes_registrations_or_takes_the_reservation()
    {
        var world = new ScsiWorld();
        ScsiNexus c = world.Login("c", 1);
        Out(world, world.A, 0, 0, 0xA);
        Out(world, world.B, 0, 0, 0xB);
        Out(world, c, 0, 0, 0xC);
        Out(world, world.A, 4, 0xA, 0xC, 1); // no reservation: only the registration goes
        world.Bad(c, Ready, "06/2A/05");
        Assert.Equal(ReservationType.None, world.Unit.ReservationType);
        Out(world, world.A, 4, 0xA, 0x77, 1, conflict: true);
        Out(world, world.A, 4, 0xA, 0, 1, sense: "05/26/00");
        Out(world, c, 0, 0, 0xC);
        Out(world, world.A, 1, 0xA, 0, 5);
        Out(world, world.B, 4, 0xB, 0xA, 1); // takes it over with another type
        world.Bad(world.A, Ready, "06/2A/05");
        world.Bad(c, Ready, "06/2A/04");
        world.Good(world.B, Ready);
        Assert.Equal(ReservationType.WriteExclusive, world.Unit.ReservationType);
        Assert.Equal(["0xB True", "0xC False"], world.Unit.Registrations.Select(r => $"0x{r.Key:X} {r.IsHolder}"));
        Out(world, world.B, 4, 0xB, 0xB, 3); // of its own: changes the type
        Assert.Equal(ReservationType.ExclusiveAccess, world.Unit.ReservationType);
        Out(world, world.B, 2, 0xB, 0, 3);
        Out(world, c, 1, 0xC, 0, 7);
        Out(world, world.B, 4, 0xB, 0, 8); // all registrants: zero takes it and removes all others
        world.Bad(c, Ready, "06/2A/05");
        Assert.Equal(ReservationType.ExclusiveAccessAll, world.Unit.ReservationType);
        Assert.Single(world.Unit.Registrations);
    }

    [Fact]
    public void Preempt_and_abort_ends_the_commands_of_the_preempted()
    {
        var world = new ScsiWorld(isSlow: true);
        Out(world, world.A, 0, 0, 0xA);
        Out(world, world.B, 0, 0, 0xB);
        world.Device.IsStuck = true;
        Reply lost = world.Begin(world.A, Read);
        Reply preempt = world.Begin(world.B, "5F050100000000001800", OutList(0xB, 0xA));
        world.Loop.RunUntil(() => false, 30);
        Assert.False(preempt.IsDone);
        world.Device.IsStuck = false;
        Assert.True(world.Loop.RunUntil(() => preempt.IsDone));
        Assert.True(lost.IsDone && !lost.IsAnswered && preempt.Status == ScsiStatus.Good);
    }

    [Fact]
    public void A_reservation_can_be_moved_to_another_port()
    {
        var world = new ScsiWorld();
        Out(world, world.A, 0, 0, 0xA);
        Out(world, world.A, 1, 0xA, 0, 3);
        byte[] list = MoveList(0xA, 0xB, 0x02, 2, "iqn.2024-01.test:b,i,0x400000000001");
        string cdb = $"5F070000000000{list.Length:X4}00";
        world.Bad(world.A, cdb, "05/26/00", MoveList(0xA, 0xB, 0, 9, "iqn.2024-01.test:b,i,0x400000000001")); // no such port
        world.Bad(world.A, cdb, "05/26/00", MoveList(0xA, 0xB, 0, 1, "iqn.2024-01.test:a,i,0x400000000001")); // to itself
        world.Bad(world.A, cdb, "05/26/00", MoveList(0xA, 0, 0, 2, "iqn.2024-01.test:b,i,0x400000000001"));
        world.Conflict(world.A, cdb, MoveList(0xF, 0xB, 0, 2, "iqn.2024-01.test:b,i,0x400000000001"));
        world.Good(world.A, cdb, list);
        Assert.Equal(["iqn.2024-01.test:b,i,0x400000000001 2 0xB True True"],
            world.Unit.Registrations.Select(r => $"{r.InitiatorPort} {r.PortalGroup} 0x{r.Key:X} {r.IsHolder} {r.IsAttached}"));
        world.Conflict(world.A, Read);
        world.Good(world.B, Read);
    }

    [Fact]
    public void Ports_can_be_registered_for_others()
    {
        var world = new ScsiWorld();
        byte[] id = new byte[48];
        TransportIdOf("iqn.2024-01.test:b,i,0x400000000001").CopyTo(id, 0);
        byte[] list = [.. OutList(0, 0xA, 0x08), 0, 0, 0, 48, .. id];
        string cdb = $"5F000000000000{list.Length:X4}00";
        world.Bad(world.A, cdb, "05/26/00", [.. list[..28], 0x44, .. list[29..]]); // another protocol
        world.Bad(world.A, cdb, "05/1A/00", [.. list[..27], 47, .. list[28..]]);
        Assert.Empty(world.Unit.Registrations);
        list = [.. OutList(0, 0xA, 0x0C), 0, 0, 0, 48, .. id]; // and on all ports
        world.Good(world.A, cdb, list);
        Assert.Equal(4, world.Unit.Registrations.Count);
        Out(world, world.B, 1, 0xA, 0, 6);
        world.Good(world.A, Write, new byte[512]);
        world.Bad(world.A, cdb, "05/26/00", [.. OutList(0xA, 1, 0x08), .. list[24..]]); // only for a first registration
    }

    [Fact]
    public void Registrants_are_bounded()
    {
        var world = new ScsiWorld();
        for (int i = 0; i < PersistentReservations.RegistrantsMax; i++) Out(world, world.Login($"n{i}", 1), 0, 0, 1);
        Out(world, world.A, 0, 0, 1, sense: "05/55/04");
        Assert.Equal(PersistentReservations.RegistrantsMax, world.Unit.Registrations.Count);
    }

    [Fact]
    public void Registrations_survive_a_restart_when_asked_to()
    {
        var store = new Store();
        var world = new ScsiWorld(store: store);
        Out(world, world.A, 0, 0, 0xA);
        Assert.Equal(0, store.Saves); // nothing to survive
        Out(world, world.B, 0, 0, 0xB, flags: 1);
        Out(world, world.B, 1, 0xB, 0, 3);
        Assert.Equal("00080D81" + "EA010000", world.Good(world.A, "5E020000000000010000").Text);
        var again = new ScsiWorld(store: store);
        Assert.Equal(IoStatus.Ok, again.Loop.Run(again.Unit.LoadAsync()));
        again.Conflict(again.A, Read);
        again.Good(again.B, Read);
        Assert.Equal("00000000", again.Good(again.A, "5E000000000000010000").Text[..8]);
        Assert.Equal(["0xA False", "0xB True"], again.Unit.Registrations.Select(r => $"0x{r.Key:X} {r.IsHolder}"));
        Out(again, again.B, 0, 0xB, 0xB, flags: 0); // not any more
        var third = new ScsiWorld(store: store);
        Assert.Equal(IoStatus.Ok, third.Loop.Run(third.Unit.LoadAsync()));
        Assert.Empty(third.Unit.Registrations);
    }

    [Fact]
    public void What_cannot_be_saved_does_not_happen()
    {
        var store = new Store();
        var world = new ScsiWorld(store: store);
        Out(world, world.A, 0, 0, 0xA, flags: 1);
        store.Status = IoStatus.NoSpace;
        string before = world.Good(world.A, "5E030000000000010000").Text;
        Out(world, world.A, 1, 0xA, 0, 3, sense: "05/55/04");
        Out(world, world.B, 0, 0, 0xB, flags: 1, sense: "05/55/04");
        Out(world, world.A, 3, 0xA, 0, sense: "05/55/04");
        Assert.Equal(before, world.Good(world.A, "5E030000000000010000").Text);
        world.Good(world.B, Write, new byte[512]);
        world.Good(world.A, Ready); // and nobody is told
        store.Status = IoStatus.Ok;
        Out(world, world.A, 1, 0xA, 0, 3);
        world.Conflict(world.B, Read);
    }

    [Fact]
    public void Damaged_saved_reservations_are_noticed()
    {
        var store = new Store();
        var world = new ScsiWorld(store: store);
        Out(world, world.A, 0, 0, 0xA, flags: 1);
        Out(world, world.A, 1, 0xA, 0, 3);
        byte[] good = store.Bytes;
        for (int bit = 0; bit < good.Length * 8; bit++)
        {
            store.Bytes = (byte[])good.Clone();
            store.Bytes[bit / 8] ^= (byte)(1 << (bit % 8));
            Assert.Equal(IoStatus.Corrupt, world.Loop.Run(world.Unit.LoadAsync()));
        }

        for (int length = 1; length < good.Length; length++) Assert.NotNull(PersistentReservations.TryRead(good.AsSpan(0, length), out _));
        Assert.NotNull(PersistentReservations.TryRead([.. good, 0], out _));
        store.Status = IoStatus.IoError;
        Assert.Equal(IoStatus.IoError, world.Loop.Run(world.Unit.LoadAsync()));
    }

    [Fact]
    public void Saved_reservations_have_these_bytes()
    {
        var store = new Store();
        var world = new ScsiWorld(store: store);
        Out(world, world.A, 0, 0, 0x1122334455667788, flags: 1);
        Out(world, world.A, 1, 0x1122334455667788, 0, 3);
        string name = Convert.ToHexString(Encoding.ASCII.GetBytes("iqn.2024-01.test:a,i,0x400000000001"));
        string body = "01000000" + "01000000" + "03" + "01" + "0100" + "8877665544332211" + "0100" + "01" + "00" + "2300" + name;
        Assert.Equal("50525356", Convert.ToHexString(store.Bytes.AsSpan(0, 4)));
        Assert.Equal(body, Convert.ToHexString(store.Bytes.AsSpan(8)));
    }

    private static byte[] OutList(ulong key, ulong newKey, byte flags = 0) =>
        ScsiWorld.Hex(ScsiWorld.U64(key) + ScsiWorld.U64(newKey) + "00000000" + $"{flags:X2}000000");

    private static byte[] TransportIdOf(string name)
    {
        var id = new byte[48];
        (id[0], id[3]) = (0x45, 44);
        Encoding.ASCII.GetBytes(name, id.AsSpan(4));
        return id;
    }

    private static byte[] MoveList(ulong key, ulong newKey, byte flags, ushort port, string name) =>
        [.. ScsiWorld.Hex(ScsiWorld.U64(key) + ScsiWorld.U64(newKey) + $"00{flags:X2}{port:X4}00000030"), .. TransportIdOf(name)];

    private static void Out(
        ScsiWorld world, ScsiNexus nexus, int action, ulong key, ulong newKey, int type = 0, bool conflict = false, string? sense = null, byte flags = 0)
    {
        Reply reply = world.Send(nexus, $"5F{action:X2}{type:X2}000000" + "00001800", OutList(key, newKey, flags));
        Assert.Equal(conflict ? "ReservationConflict" : sense ?? "Good", reply.Sense);
    }

    /// <summary>Keeps what is saved.</summary>
    private sealed class Store : IReservationStore
    {
        public byte[] Bytes { get; set; } = [];

        public IoStatus Status { get; set; }

        public int Saves { get; private set; }

        public ValueTask<(IoStatus Status, ReadOnlyMemory<byte> Bytes)> LoadAsync() => new((Status, Bytes));

        public ValueTask<IoStatus> SaveAsync(ReadOnlyMemory<byte> bytes)
        {
            Saves++;
            if (Status == IoStatus.Ok) Bytes = bytes.ToArray();
            return new ValueTask<IoStatus>(Status);
        }
    }
}
